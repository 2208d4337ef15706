"""Times Flashloom's forward attention where keys are visible in patterns: windows, packed
documents, block masks, and in plain rows of every head dimension.

Usage: compare_patterns.py LIBRARY [--json FILE] [--cases windows packed blocks dimensions scores]

Rates in TFLOP/s of visible pairs, 4 D a pair and head; peers run in the same rounds, in turn
(compare.py's medians). FA3 and FA4 are looked for as compare.py does. `memory` is the rate at which
every tensor would be read or written once as fast as this card copies, where that is near.
"""
import argparse
import json
import math
import os

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from compare import fa3, fa4, medians
from flashloom_attention import Attention

BF16 = torch.bfloat16


def tensors(batch, seq, heads, group, dim):
    shapes = ((heads, dim), (group, dim), (group, dim))
    return [torch.randn(batch, seq, h, d, device="cuda", dtype=BF16) for h, d in shapes]


def ours(attention, q, k, v, **mask):
    """Tensors (B, S, H, D) or packed (T, H, D), as models hold them."""
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    out = torch.full_like(q, math.nan)
    lse = torch.empty(q.shape[:-1], device="cuda")
    return attention.prepare("forward", q=q, k=k, v=v, out=out, lse=lse, backend="sm90", **mask)


def copy_rate():
    """Bytes read and written a millisecond, copying 1 GiB."""
    source, target = (torch.empty(1 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    return 2 * source.numel() / medians({"copy": lambda: target.copy_(source)})["copy"]


def row(name, flops, calls, bound=None):
    """`bound`: the least milliseconds that memory needs, printed where it is more than half of the time."""
    rates = {peer: round(flops / t / 1e9) for peer, t in medians(calls).items()}
    peers = [r for peer, r in rates.items() if peer != "flashloom"]
    ratio = round(rates["flashloom"] / max(peers), 3) if peers else None
    result = dict(case=name, **rates, ratio=ratio)
    if bound is not None and flops / bound / 1e9 < 2 * rates["flashloom"]:
        result["memory"] = round(flops / bound / 1e9)
    print(json.dumps(result), flush=True)
    return result


WINDOWS = [  # heads, heads of keys, head dimension, left, right, rows
    (12, 12, 64, 64, 64, (1024, 2048, 4096, 8192, 16384, 32768)),  # ModernBERT's local layers
    (12, 12, 64, 128, 128, (1024, 8192)), (12, 12, 64, 64, 0, (8192,)),
    (64, 8, 64, 127, 0, (8192,)),  # gpt-oss's
    (12, 12, 64, 255, 0, (8192,)), (12, 12, 128, 64, 64, (8192,)), (32, 8, 128, 127, 0, (8192,))]


def windows(attention):
    """32k tokens, 16k where heads are many or wide."""
    rate = copy_rate()
    print(json.dumps(dict(case="copy, GB/s read and written", rate=round(rate / 1e6))), flush=True)
    for heads, group, dim, left, right, lengths in WINDOWS:
        for seq in lengths:
            batch = (32768 if heads * dim < 1024 else 16384) // seq
            q, k, v = tensors(batch, seq, heads, group, dim)
            pairs = sum(min(seq, i + right + 1) - max(0, i - left) for i in range(seq))
            calls = {"flashloom": ours(attention, q, k, v, left=left, right=right)}
            if fa4:  # FA3's wheel has no windows
                calls["fa4"] = lambda: fa4._flash_attn_fwd(q, k, v, window_size_left=left,
                                                           window_size_right=right)
            rows = batch * seq
            yield row(f"window {left}, {right}, D {dim}, heads {heads}/{group}, S {seq}",
                      4 * batch * heads * pairs * dim, calls,
                      rows * (heads * (4 * dim + 4) + group * 4 * dim) / rate)


def packed(attention):
    """32k tokens of documents with log-normal lengths, causal inside each."""
    generator = torch.Generator().manual_seed(1)
    lengths, total = [], 32768
    while sum(lengths) < total:
        drawn = int(torch.exp(6.2 + 0.8 * torch.randn(1, generator=generator)).item())
        lengths.append(max(16, min(drawn, 4096, total - sum(lengths))))
    cu = torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
    longest = max(lengths)
    for dim in (64, 128):
        heads = 2048 // dim
        q, k, v = (torch.randn(total, heads, dim, device="cuda", dtype=BF16) for _ in range(3))
        calls = {"flashloom": ours(attention, q, k, v, right=0, cu_query=cu, cu_key=cu,
                                   max_query=longest, max_key=longest)}
        if fa3:
            calls["fa3"] = lambda: fa3.flash_attn_varlen_func(q, k, v, cu, cu, longest, longest,
                                                              causal=True)
        if fa4:
            calls["fa4"] = lambda: fa4._flash_attn_fwd(
                q, k, v, causal=True, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=longest,
                max_seqlen_k=longest)
        flops = 4 * heads * dim * sum(n * (n + 1) / 2 for n in lengths)
        yield row(f"packed causal, {len(lengths)} documents, longest {longest}, D {dim}", flops,
                  calls)


def block_lists(keep):
    """Row offsets and columns of a (H, rows, columns) boolean mask, entries padded to the longest."""
    heads, rows, _ = keep.shape
    counts = keep.sum(2)
    offsets = F.pad(counts.cumsum(1), (1, 0)).int()
    columns = torch.zeros(heads, int(offsets[:, -1].max()), dtype=torch.int32, device=keep.device)
    for h in range(heads):
        own = keep[h].nonzero()[:, 1].int()
        columns[h, :len(own)] = own
    return offsets[None].contiguous(), columns[None].contiguous()


def block_masks(seq, heads):
    """(name, key-value heads, (heads or 1, rows, columns) mask) of blocks of 128 x 128."""
    size = seq // 128
    eye = torch.eye(size, device="cuda", dtype=torch.bool)

    def random(density, masks=heads):
        return (torch.rand(masks, size, size, device="cuda") < density) | eye

    for density in (1.0, 0.5, 0.25, 0.1):
        yield "random", heads, random(density)
    yield "random, heads 16/4", heads // 4, random(0.25)
    yield "causal", heads, torch.ones(heads, size, size, device="cuda").tril() > 0
    # Long documents: a band, two rows and columns that see all, some more; one mask for all heads.
    keep = random(0.1, 1)
    keep[:, :2] = keep[:, :, :2] = True
    near = torch.arange(size, device="cuda")
    yield "band and global rows", heads, keep | ((near[None] - near[:, None]).abs() < 2)


def blocks(attention):
    """Block masks of 128 x 128; the peer is our own dense kernel."""
    seq, heads = 8192, 16
    for dim in (128, 64):
        for name, group, keep in block_masks(seq, heads):
            q, k, v = tensors(2, seq, heads, group, dim)
            offsets, columns = block_lists(keep)
            visible = keep.float().mean().item()
            dense = ours(attention, q, k, v)
            masked = ours(attention, q, k, v, block_rows=128, block_keys=128,
                          block_row_offsets=offsets, block_columns=columns)
            times = medians({"masked": masked, "dense": dense})
            flops = 4 * 2 * heads * dim * seq * seq
            result = dict(case=f"blocks 128 x 128, D {dim}, {name}, density {visible:.2f}",
                          flashloom=round(flops * visible / times["masked"] / 1e9),
                          dense=round(flops / times["dense"] / 1e9))
            result["ratio"] = round(result["flashloom"] / result["dense"], 3)
            print(json.dumps(result), flush=True)
            yield result


def dimensions(attention):
    rate = copy_rate()
    for dim in (64, 128, 96, 192, 256):
        for causal in (False, True):
            for seq in (512, 1024, 2048, 4096, 8192, 16384) if dim in (64, 128) else (512, 2048, 8192):
                heads = 2048 // dim
                q, k, v = tensors(16384 // seq, seq, heads, heads, dim)
                calls = {"flashloom": ours(attention, q, k, v, right=0 if causal else -1)}
                if fa3:
                    calls["fa3"] = lambda: fa3.flash_attn_func(q, k, v, causal=causal)
                turned = [x.transpose(1, 2) for x in (q, k, v)]

                def cudnn():
                    with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                        F.scaled_dot_product_attention(*turned, is_causal=causal)

                calls["cudnn"] = cudnn
                flops = 4 * q.shape[0] * heads * seq * seq * dim * (0.5 if causal else 1)
                yield row(f"D {dim}, {'causal' if causal else 'full'}, S {seq}", flops, calls,
                          16384 * heads * (4 * dim * 2 + 4) / rate)


def scores(attention):
    """What the general kernels cost beside the plain one."""
    for dim in (64, 128):
        heads = 2048 // dim
        q, k, v = tensors(4, 4096, heads, heads, dim)
        seed = torch.tensor([7], device="cuda")
        slopes = torch.rand(heads, device="cuda")
        calls = {"flashloom": ours(attention, q, k, v, right=0),
                 "softcap": ours(attention, q, k, v, right=0, softcap=30.0),
                 "alibi": ours(attention, q, k, v, right=0, alibi_slopes=slopes),
                 "dropout": ours(attention, q, k, v, right=0, dropout_probability=0.1,
                                 dropout_seed=seed)}
        yield row(f"scores, causal, S 4096, D {dim}", 2 * 4 * heads * 4096 * 4096 * dim, calls)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--json")
    groups = {cases.__name__: cases for cases in (windows, packed, blocks, dimensions, scores)}
    parser.add_argument("--cases", nargs="+", choices=list(groups), default=list(groups))
    options = parser.parse_args()
    attention = Attention(os.path.abspath(options.library))
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN",
          torch.backends.cudnn.version(), "fa3", fa3 is not None, "fa4", fa4 is not None,
          flush=True)
    rows = []
    for cases in (groups[name] for name in options.cases):
        try:
            rows += list(cases(attention))
        except Exception as error:  # a peer that does not take a shape must not hide the others
            print(cases.__name__, "failed:", error, flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
