"""Checks Flashloom's attention on a GPU against float64, then times it beside its peers.

Usage: compare.py LIBRARY [--check] [--dense] [--decode [--fa4-pages]] [--json FILE]

Rates in TFLOP/s of visible pairs: forward 4 D a pair and head, backward 2.5 times that. Peers run
in the same rounds, each in another order (`orders`); a rate is the median of six rounds, the ratio
to the best peer the median of the six rounds' own, `deterministic` that mode's to the fast one.
"""
import argparse
import importlib
import itertools
import json
import math
import os
import site
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

for folder in (os.environ.get("PEERS"), "/tmp/site"):
    if folder and os.path.isdir(folder):
        site.addsitedir(folder)


def peer(module):
    """A peer's module, or None if it is not there or does not load: then the reason is printed."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        print(f"without {module}: {error!r}", file=sys.stderr)
        return None


fa3 = peer("fa3_fwd_interface")
fa4 = peer("flash_attn.cute.interface")

from flashloom_attention import Attention


def reference(q, k, v, dout, right, left, dtype, rounded):
    """Plain loops over heads in `dtype`; with `rounded`, P and dS are rounded to it, P relative to
    a maximum that may be up to 8 powers of two low, as the kernel's is. Tensors (B, H, S, D).
    Returns out, lse, dq, dk, dv."""
    batch, heads, rows, dim = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    scale = 1 / math.sqrt(dim)
    distance = (torch.arange(keys, device=q.device)[None]
                - torch.arange(rows, device=q.device)[:, None] - (keys - rows))
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if right >= 0:
        hidden |= distance > right
    if left >= 0:
        hidden |= distance < -left
    to = (lambda x: x.to(rounded).to(dtype)) if rounded else (lambda x: x)
    out = torch.zeros(q.shape, dtype=dtype, device=q.device)
    lse = torch.zeros(q.shape[:3], dtype=dtype, device=q.device)
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=q.device) for x in (q, k, v))
    for b in range(batch):
        for h in range(heads):
            g = h // group
            qh, kh, vh, doh = (x.to(dtype) for x in (q[b, h], k[b, g], v[b, g], dout[b, h]))
            scores = (qh @ kh.T * scale).masked_fill(hidden, -math.inf)
            top = scores.amax(1, keepdim=True)
            top = torch.where(top.isinf(), 0, top)
            if rounded:
                top = top - 8 * math.log(2) * torch.rand_like(top)
            weights = torch.exp(scores - top)
            total = weights.sum(1, keepdim=True)
            safe = torch.where(total == 0, 1, total)
            out[b, h] = to(weights) @ vh / safe
            lse[b, h] = (top + total.log())[:, 0]
            p = weights / safe
            dv[b, g] += to(p).T @ doh
            delta = (doh * to(out[b, h])).sum(1, keepdim=True)
            ds = to(p * (doh @ vh.T - delta))
            dq[b, h] = ds @ kh * scale
            dk[b, g] += ds.T @ qh * scale
    return out, lse, dq, dk, dv


def rows_first(*shape, dtype):
    """A (B, H, S, D) view of (B, S, H, D) memory, as models hold it."""
    b, h, s, d = shape
    return torch.randn(b, s, h, d, device="cuda").to(dtype).transpose(1, 2)


CHECKS = [  # B, H, G, S_q, S_k, right, left, factor on q
    (2, 3, 3, 128, 128, -1, -1, 1), (2, 4, 2, 333, 555, -1, -1, 1), (1, 2, 1, 1000, 1000, 0, -1, 4),
    (1, 2, 2, 700, 513, 0, -1, 1), (3, 8, 4, 1, 77, 0, -1, 1), (1, 2, 2, 777, 777, 0, 100, 1),
    (1, 2, 2, 640, 640, 64, 64, 1), (2, 4, 1, 127, 129, 0, -1, 1), (2, 4, 1, 193, 191, -1, -1, 1),
    (1, 4, 4, 2048, 2048, 0, -1, 1), (1, 8, 2, 2048, 2048, -1, -1, 1), (33, 8, 8, 65, 65, 0, -1, 1)]


def check_sinks_and_dlse(attention):
    """A sink in the forward pass, and a gradient that flows into the LSE in the backward pass,
    against autograd in float64."""
    failures = 0
    for dim in (128, 64):
        q, dout = (rows_first(2, 4, 300, dim, dtype=torch.bfloat16) for _ in range(2))
        k, v = (rows_first(2, 2, 300, dim, dtype=torch.bfloat16) for _ in range(2))
        sinks = torch.randn(4, device="cuda")
        dlse = torch.randn(2, 4, 300, device="cuda")
        for sink in (None, sinks):
            exact = [x.double().requires_grad_() for x in (q, k, v)]
            wide = [x.repeat_interleave(2, 1) for x in exact[1:]]
            scores = exact[0] @ wide[0].transpose(2, 3) / math.sqrt(dim)
            scores = scores.masked_fill(torch.ones(300, 300, device="cuda").triu(1).bool(),
                                        -math.inf)
            if sink is not None:
                exact.append(sink.double().requires_grad_())
                column = exact[3][None, :, None, None].expand(2, 4, 300, 1)
                scores = torch.cat((scores, column), 3)
            true_lse = scores.logsumexp(3)
            true_out = torch.softmax(scores, 3)[..., :300] @ wide[1]
            ((true_out * dout.double()).sum() + (true_lse * dlse.double()).sum()).backward()

            out, dq = torch.full_like(q, math.nan), torch.full_like(q, math.nan)
            dk, dv = torch.full_like(k, math.nan), torch.full_like(v, math.nan)
            dsinks = torch.full_like(sinks, math.nan)
            lse = torch.full((2, 4, 300), math.nan, device="cuda")
            extra = {} if sink is None else {"sinks": sink}
            attention.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, right=0, **extra)()
            if sink is not None:
                extra["dsinks"] = dsinks
            attention.prepare("backward", q=q, k=k, v=v, out=out, lse=lse, dout=dout, dlse=dlse,
                              dq=dq, dk=dk, dv=dv, right=0, **extra)()
            torch.cuda.synchronize()
            pairs = [("out", out, true_out), ("lse", lse, true_lse)]
            if sink is not None:  # by its formula, from the rounded out that the kernel gets
                delta = (dout.double() * out.double()).sum(3) - dlse
                weight = torch.exp(sink.double()[None, :, None] - true_lse)
                exact[3].grad = -(weight * delta).sum((0, 2)).detach()
            pairs += [(n, g, e.grad) for n, g, e in zip(("dq", "dk", "dv", "dsinks"),
                                                        (dq, dk, dv, dsinks), exact)]
            for name, mine, true in pairs:
                error = ((mine.double() - true).norm() / true.norm()).item()
                if not error < 6e-3:  # bf16 rounds P, dS and results at 2^-9 each
                    failures += 1
                    print("FAIL", "sink" if sink is not None else "dlse", dim, name, error, flush=True)
    return failures


def check(attention):
    failures = 0
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (128, 64):
            for b, h, g, sq, sk, right, left, factor in CHECKS:
                q, dout = (rows_first(b, h, sq, dim, dtype=dtype) for _ in range(2))
                q = q * factor
                k, v = (rows_first(b, g, sk, dim, dtype=dtype) for _ in range(2))
                exact = reference(q, k, v, dout, right, left, torch.float64, None)
                plain = reference(q, k, v, dout, right, left, torch.float32, dtype)
                previous = None
                for deterministic in (False, True, True, True):
                    out, dq = torch.full_like(q, math.nan), torch.full_like(q, math.nan)
                    dk, dv = torch.full_like(k, math.nan), torch.full_like(v, math.nan)
                    lse = torch.full(q.shape[:3], math.nan, device="cuda")
                    mask = dict(left=left, right=right, deterministic=deterministic)
                    attention.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, **mask)()
                    attention.prepare("backward", q=q, k=k, v=v, out=out, lse=lse, dout=dout,
                                      dq=dq, dk=dk, dv=dv, **mask)()
                    torch.cuda.synchronize()
                    for name, mine, true, other in zip(
                            ("out", "dq", "dk", "dv"), (out, dq, dk, dv),
                            (exact[0], *exact[2:]), (plain[0], *plain[2:])):
                        error = (mine.double() - true).abs().max().item()
                        bound = 2 * (other.to(dtype).double() - true).abs().max().item() + 1e-5
                        if not error <= bound:
                            failures += 1
                            print("FAIL", dtype, dim, (b, h, g, sq, sk, right, left), name,
                                  f"error {error:.3g} bound {bound:.3g}", flush=True)
                    seen = ~exact[1].isinf()
                    if not ((lse.double() - exact[1])[seen].abs() < 1e-3).all() or not (
                            lse[~seen] == -math.inf).all():
                        failures += 1
                        print("FAIL lse", dtype, dim, (b, h, g, sq, sk, right, left), flush=True)
                    if deterministic:
                        if previous and not all(map(torch.equal, previous, (out, dq, dk, dv))):
                            failures += 1
                            print("FAIL not deterministic", dtype, dim, (b, h, g, sq, sk))
                        previous = (out, dq, dk, dv)
    failures += check_sinks_and_dlse(attention)
    # Packed documents.
    lengths = [1, 127, 128, 300, 5, 0, 640]
    cu = torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
    for dim in (128, 64):
        q, k, v, dout = (torch.randn(sum(lengths), 4, dim, device="cuda").bfloat16().transpose(0, 1)
                         for _ in range(4))
        out, dq, dk, dv = (torch.full_like(q, math.nan) for _ in range(4))
        lse = torch.full(q.shape[:2], math.nan, device="cuda")
        packed = dict(cu_query=cu, cu_key=cu, max_query=max(lengths), max_key=max(lengths), right=0)
        attention.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, **packed)()
        attention.prepare("backward", q=q, k=k, v=v, out=out, lse=lse, dout=dout, dq=dq, dk=dk,
                          dv=dv, **packed)()
        for i, length in enumerate(lengths):
            rows = slice(cu[i], cu[i + 1])
            part = [x[None, :, rows] for x in (q, k, v, dout)]
            if length:
                exact = reference(*part, 0, -1, torch.float64, None)
                plain = reference(*part, 0, -1, torch.float32, torch.bfloat16)
                for name, mine, true, other in zip(
                        ("out", "dq", "dk", "dv"), (out, dq, dk, dv), (exact[0], *exact[2:]),
                        (plain[0], *plain[2:])):
                    error = (mine[None, :, rows].double() - true).abs().max().item()
                    bound = 2 * (other.bfloat16().double() - true).abs().max().item() + 1e-5
                    if not error <= bound:
                        failures += 1
                        print("FAIL packed", dim, length, name, error, bound)
    print("checks:", "all passed" if failures == 0 else f"{failures} failed", flush=True)


def orders(names, rounds=6):
    """Orders of the contestants, one a round. At the power limit a burst is 1 to 3 % slower behind
    one that draws much, so nobody may always follow the same: the first one begins every round and
    the others come in all their orders, so that, of up to four, each runs right behind every other
    equally often, from round to round too."""
    first, *others = names
    every = list(itertools.permutations(others))
    return [(first, *every[i % len(every)]) for i in range(rounds)]


def timed_rounds(calls, milliseconds=20):
    """Milliseconds a call in each round of `orders`. The first contestant's are the mean of the
    bursts before and behind the others', since it always comes first."""
    counts, times = {}, {name: [] for name in calls}

    def timed(run, count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        for _ in range(count):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / count

    for name, run in calls.items():
        timed(run, 2)
        counts[name] = max(3, int(milliseconds / timed(run, 3)))
    rounds = orders(calls)
    first, last = rounds[0][0], rounds[-1][-1]
    timed(calls[last], counts[last])  # as if a round had been before
    for name in (*itertools.chain.from_iterable(rounds), first):
        times[name].append(timed(calls[name], counts[name]))
    times[first] = [(before + behind) / 2 for before, behind in itertools.pairwise(times[first])]
    return times


def medians(calls):
    """Median milliseconds a call, see timed_rounds."""
    return {name: statistics.median(times) for name, times in timed_rounds(calls).items()}


def speed(times, name, base):
    """How many times as fast as `base` a contestant is: the median of the rounds' own ratios."""
    return statistics.median(theirs / own for theirs, own in zip(times[base], times[name]))


def dense_row(attention, batch, heads, group, seq, dim, causal):
    q, dout = (rows_first(batch, heads, seq, dim, dtype=torch.bfloat16) for _ in range(2))
    k, v = (rows_first(batch, group, seq, dim, dtype=torch.bfloat16) for _ in range(2))
    out, dq, dk, dv = (torch.empty_like(x) for x in (q, q, k, v))
    lse = torch.empty(q.shape[:3], device="cuda")
    mask = dict(right=0 if causal else -1)
    forward = {"flashloom": attention.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, **mask)}
    forward["flashloom"]()
    saved = dict(q=q, k=k, v=v, out=out, lse=lse, dout=dout, dq=dq, dk=dk, dv=dv)
    backward = {"flashloom": attention.prepare("backward", **saved, **mask),
                "flashloom deterministic": attention.prepare("backward", **saved, **mask,
                                                             deterministic=True)}
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def cudnn():
        with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != group)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        result = F.scaled_dot_product_attention(*leaves, is_causal=causal,
                                                enable_gqa=heads != group)
    forward["cudnn"] = cudnn
    backward["cudnn"] = lambda: torch.autograd.grad(result, leaves, dout, retain_graph=True)
    back = [x.transpose(1, 2) for x in (q, k, v, dout)]
    if fa3:
        forward["fa3"] = lambda: fa3.flash_attn_func(*back[:3], causal=causal)
    if fa4:
        o4, l4 = fa4._flash_attn_fwd(*back[:3], return_lse=True, causal=causal)[:2]
        forward["fa4"] = lambda: fa4._flash_attn_fwd(*back[:3], causal=causal)
        backward["fa4"] = lambda: fa4._flash_attn_bwd(*back[:3], o4, back[3], l4, causal=causal)
    flops = 4 * batch * heads * seq * seq * dim * (0.5 if causal else 1)
    rows = []
    for direction, calls, work in (("forward", forward, flops), ("backward", backward, 2.5 * flops)):
        times = timed_rounds(calls)
        rates = {name: round(work / statistics.median(t) / 1e9) for name, t in times.items()}
        peers = [n for n in times if not n.startswith("flashloom")]
        ratios = {"ratio": round(min(speed(times, "flashloom", n) for n in peers), 3)}
        if "flashloom deterministic" in times:
            ratios["deterministic"] = round(speed(times, "flashloom deterministic", "flashloom"), 3)
        rows.append(dict(D=dim, causal=causal, S=seq, B=batch, H=heads, G=group, direction=direction,
                         **rates, **ratios))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--fa4-pages", action="store_true",
                        help="FlashAttention-4 beside --decode's pages; it compiles each shape")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.manual_seed(int(time.time()))
    attention = Attention(os.path.abspath(options.library))
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN",
          torch.backends.cudnn.version(), "fa3", fa3 is not None, "fa4", fa4 is not None,
          flush=True)
    if options.check:
        check(attention)
    rows = []
    if options.dense:
        for dim in (128, 64):
            for causal in (False, True):
                for seq in (512, 1024, 2048, 4096, 8192, 16384):
                    rows += dense_row(attention, 16384 // seq, 2048 // dim, 2048 // dim, seq, dim,
                                      causal)
        for dim, seq in ((96, 512), (96, 2048), (192, 2048), (192, 8192), (256, 4096)):
            for causal in (False, True):
                heads = 2048 // dim
                rows += dense_row(attention, 16384 // seq, heads, heads, seq, dim, causal)
        for seq in (2048, 8192):
            rows += dense_row(attention, 16384 // seq, 32, 8, seq, 128, True)
    if options.decode:
        from decode import decode_rows
        rows += decode_rows(attention, fa3, fa4 if options.fa4_pages else None)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
