"""Times Flashloom's backward attention beside its peers.

Usage: compare_backward.py NAME=LIBRARY[,NAME=LIBRARY...] GROUP... [--json FILE]
           [--milliseconds N] [--without-cudnn]

Groups: short, long (D 64 and 128), grouped, windows, packed, blocks, dimensions. Rates in TFLOP/s of
visible pairs, 10 D a pair and head. Every call is timed in bursts of N (5) ms, each between two
bursts of the first column's; figures are the first column's median rate and, of the others, that
rate times the median of five ratios. A burst begins with an idle device: what a peer's host does
before its first kernel counts, the less the longer bursts are. `det` is the deterministic mode.
Before timing, all libraries and modes must agree. cuDNN runs through autograd; FA4 if its wheel is
in the folder PEERS (the FA3 wheel has no backward).
"""
import argparse
import json
import os
import site

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if os.environ.get("PEERS"):
    site.addsitedir(os.environ["PEERS"])
try:
    from flash_attn.cute import interface as fa4
except Exception:  # a wheel that is not there or does not load
    fa4 = None

from flashloom_attention import Attention

BF16 = torch.bfloat16
ROUNDS = 5
MILLISECONDS = 5


def burst(run, count):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / count


def ratios(calls, length=MILLISECONDS):
    """Milliseconds of the first call, and how many times as fast the others are. A burst lies between
    two of the first call: the second of two equal bursts is 1-3 % slower at the power limit."""
    base = next(iter(calls))
    counts = {}
    for name, run in calls.items():
        burst(run, 1)
        counts[name] = max(2, int(length / burst(run, 2)))
    others = [name for name in calls if name != base]
    own, speed = [], {name: [] for name in others}
    for _ in range(ROUNDS):
        own.append(burst(calls[base], counts[base]))
        for name in others:
            time = burst(calls[name], counts[name])
            own.append(burst(calls[base], counts[base]))
            speed[name].append((own[-2] + own[-1]) / 2 / time)
    middle = {name: sorted(values)[ROUNDS // 2] for name, values in speed.items()}
    return sorted(own)[len(own) // 2], middle


def agree(calls, results):
    """All calls must leave the same results, up to the rounding of another order of sums."""
    want = None
    for name, run in calls.items():
        for x in results:
            x.fill_(float("nan"))
        run()
        torch.cuda.synchronize()
        if want is None:
            want = [x.float() for x in results]
        for x, y in zip(results, want):
            error = (x.float() - y).abs().max().item()
            if not error <= 0.02 * y.abs().max().item():
                print("DIFFERS", name, error, y.abs().max().item(), flush=True)


class Bench:
    def __init__(self, libraries, milliseconds=MILLISECONDS, cudnn=True):
        self.libraries = libraries
        self.milliseconds = milliseconds
        self.cudnn = cudnn
        self.rows = []

    def ours(self, q, k, v, dout, **mask):
        """Calls of every library and mode on (B, S, H, D) or packed (T, H, D) tensors."""
        q, k, v, dout = (x.transpose(-3, -2) for x in (q, k, v, dout))
        out, dq, dk, dv = (torch.empty_like(x) for x in (q, q, k, v))
        lse = torch.empty(q.shape[:-1], device="cuda")
        first = next(iter(self.libraries.values()))
        first.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, **mask)()
        saved = dict(q=q, k=k, v=v, out=out, lse=lse, dout=dout, dq=dq, dk=dk, dv=dv)
        calls = {}
        for name, library in self.libraries.items():
            calls[name] = library.prepare("backward", backend="sm90", **saved, **mask)
            calls[name + " det"] = library.prepare("backward", backend="sm90", deterministic=True,
                                                   **saved, **mask)
        agree(calls, (dq, dk, dv))
        return calls, out, lse

    def row(self, case, flops, calls):
        base = next(iter(calls))
        milliseconds, speed = ratios(calls, self.milliseconds)
        rate = flops / milliseconds / 1e9
        result = {"case": case, base: round(rate),
                  **{name: [round(rate * x), round(x, 3)] for name, x in speed.items()}}
        print(json.dumps(result), flush=True)
        self.rows.append(result)

    def dense(self, seq, dim, causal, heads=None, group=None):
        heads = heads or 2048 // dim
        group = group or heads
        batch = max(1, 16384 // seq)
        q, dout = (torch.randn(batch, seq, heads, dim, device="cuda", dtype=BF16) for _ in range(2))
        k, v = (torch.randn(batch, seq, group, dim, device="cuda", dtype=BF16) for _ in range(2))
        calls, out, lse = self.ours(q, k, v, dout, right=0 if causal else -1)
        if self.cudnn:
            leaves = [x.transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                result = F.scaled_dot_product_attention(*leaves, is_causal=causal,
                                                        enable_gqa=heads != group)
            upstream = dout.transpose(1, 2)
            calls["cudnn"] = lambda: torch.autograd.grad(result, leaves, upstream,
                                                         retain_graph=True)
        if fa4:
            calls["fa4"] = lambda: fa4._flash_attn_bwd(q, k, v, out.transpose(1, 2), dout, lse,
                                                       causal=causal)
        pairs = seq * seq * (0.5 if causal else 1)
        shape = f"{heads}/{group} " if group != heads else ""
        self.row(f"D {dim} {'causal' if causal else 'full'} {shape}S {seq}",
                 10 * batch * heads * pairs * dim, calls)

    def short(self):
        for seq in (512, 1024, 2048):
            for dim in (64, 128):
                for causal in (False, True):
                    self.dense(seq, dim, causal)

    def long(self):
        for seq in (4096, 8192, 16384):
            for dim in (64, 128):
                for causal in (False, True):
                    self.dense(seq, dim, causal)

    def grouped(self):
        for seq in (2048, 8192):
            self.dense(seq, 128, True, 32, 8)

    def dimensions(self):
        for dim in (96, 192, 256):
            for causal in (False, True):
                self.dense(4096, dim, causal)

    def windows(self):
        """ModernBERT's local layers, 12 heads of 64 and 64 keys on each side, and others."""
        for dim, heads, seq, window in ((64, 12, 1024, 64), (64, 12, 8192, 64), (64, 12, 8192, 128),
                                        (128, 16, 8192, 64), (128, 16, 8192, 128)):
            q, k, v, dout = (torch.randn(32768 // seq, seq, heads, dim, device="cuda", dtype=BF16)
                             for _ in range(4))
            calls, out, lse = self.ours(q, k, v, dout, left=window, right=window)
            if fa4:
                calls["fa4"] = lambda: fa4._flash_attn_bwd(
                    q, k, v, out.transpose(1, 2), dout, lse, window_size_left=window,
                    window_size_right=window)
            pairs = seq * (2 * window + 1) - window * (window + 1)
            self.row(f"D {dim} window {window} S {seq}", 10 * q.shape[0] * heads * pairs * dim,
                     calls)

    def packed(self):
        """32k tokens of documents with log-normal lengths, causal inside each."""
        generator = torch.Generator().manual_seed(1)
        lengths, total = [], 32768
        while sum(lengths) < total:
            drawn = int(torch.exp(6.2 + 0.8 * torch.randn(1, generator=generator)).item())
            lengths.append(max(16, min(drawn, 4096, total - sum(lengths))))
        cu = torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
        for dim in (64, 128):
            heads = 2048 // dim
            q, k, v, dout = (torch.randn(total, heads, dim, device="cuda", dtype=BF16)
                             for _ in range(4))
            calls, out, lse = self.ours(q, k, v, dout, right=0, cu_query=cu, cu_key=cu,
                                        max_query=max(lengths), max_key=max(lengths))
            if fa4:
                calls["fa4"] = lambda: fa4._flash_attn_bwd(
                    q, k, v, out.transpose(0, 1), dout, lse, causal=True, cu_seqlens_q=cu,
                    cu_seqlens_k=cu, max_seqlen_q=max(lengths), max_seqlen_k=max(lengths))
            self.row(f"D {dim} packed causal, {len(lengths)} documents",
                     10 * heads * dim * sum(n * (n + 1) / 2 for n in lengths), calls)

    def blocks(self):
        """A random 128 x 128 block mask beside the same kernel library's plain call."""
        seq, heads = 8192, 16
        for dim in (128, 64):
            q, k, v, dout = (torch.randn(2, seq, heads, dim, device="cuda", dtype=BF16)
                             for _ in range(4))
            dense, _, _ = self.ours(q, k, v, dout)
            base = next(iter(dense))
            flops = 10 * 2 * heads * dim * seq * seq
            for density in (1.0, 0.5, 0.1):
                keep = torch.rand(heads, seq // 128, seq // 128, device="cuda") < density
                keep |= torch.eye(seq // 128, device="cuda", dtype=torch.bool)
                offsets, columns = block_lists(keep)
                column_offsets, rows = block_lists(keep.transpose(1, 2))
                calls, _, _ = self.ours(q, k, v, dout, block_rows=128, block_keys=128,
                                        block_row_offsets=offsets, block_columns=columns,
                                        block_column_offsets=column_offsets,
                                        block_transposed_rows=rows)
                visible = keep.float().mean().item()
                dense_ms, speed = ratios({"dense": dense[base], **calls}, self.milliseconds)
                rate = flops / dense_ms / 1e9
                result = {"case": f"D {dim} blocks, density {visible:.2f}", "dense": round(rate),
                          **{n: [round(rate * x * visible), round(x * visible, 3)]
                             for n, x in speed.items()}}
                print(json.dumps(result), flush=True)
                self.rows.append(result)


def block_lists(keep):
    """Row offsets and columns of a (H, rows, columns) boolean mask, entries padded to the longest."""
    heads = keep.shape[0]
    offsets = F.pad(keep.sum(2).cumsum(1), (1, 0)).int()
    columns = torch.zeros(heads, int(offsets[:, -1].max()), dtype=torch.int32, device=keep.device)
    for h in range(heads):
        own = keep[h].nonzero()[:, 1].int()
        columns[h, :len(own)] = own
    return offsets[None].contiguous(), columns[None].contiguous()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries")
    parser.add_argument("groups", nargs="+",
                        choices=("short", "long", "grouped", "windows", "packed", "blocks",
                                 "dimensions"))
    parser.add_argument("--json")
    parser.add_argument("--milliseconds", type=float, default=MILLISECONDS)
    parser.add_argument("--without-cudnn", action="store_true")
    options = parser.parse_args()
    libraries = {name: Attention(os.path.abspath(path))
                 for name, path in (part.split("=") for part in options.libraries.split(","))}
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN",
          torch.backends.cudnn.version(), "fa4", fa4 is not None, flush=True)
    bench = Bench(libraries, options.milliseconds, not options.without_cudnn)
    for group in options.groups:
        try:
            getattr(bench, group)()
        except Exception as error:  # a peer that does not take a shape must not hide the others
            print(group, "failed:", error, flush=True)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(bench.rows, out, indent=1)


if __name__ == "__main__":
    main()
