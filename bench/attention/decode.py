"""Decoding beside FlashAttention-3, where the cache has pages beside FlashAttention-4, and beside
reading alone. Used by compare.py --decode.

Every call is timed inside CUDA graphs, so that no host overhead counts; the calls of a graph walk
several caches of more than 400 MB together, so that none lies in the 50 MB of the L2 cache; graphs
of all contestants run in turn and the figure is the median of the rounds. GB/s of the keys and
values in use, read once.
"""
import json
import math

import torch
import triton
import triton.language as tl

# batch, cache, query heads, key-value heads, D, queries, page size (0: none), ragged lengths
CASES = [
    (1, 32768, 32, 8, 128, 1, 0, False), (16, 8192, 32, 8, 128, 1, 0, False),
    (64, 2048, 32, 8, 128, 1, 0, False), (8, 65536, 32, 8, 128, 1, 0, False),
    (1, 2048, 32, 8, 128, 1, 0, False), (1, 8192, 32, 8, 128, 1, 0, False),
    (4, 4096, 32, 8, 128, 1, 0, False), (1, 131072, 32, 8, 128, 1, 0, False),
    (1, 32768, 8, 1, 128, 1, 0, False), (32, 8192, 32, 32, 128, 1, 0, False),
    (1, 32768, 14, 2, 64, 1, 0, False), (64, 4096, 14, 2, 64, 1, 0, False),
    (16, 8192, 16, 4, 256, 1, 0, False), (16, 8192, 32, 8, 128, 4, 0, False),
    (16, 8192, 32, 8, 128, 16, 0, False), (1, 32768, 32, 8, 128, 16, 0, False),
    (64, 2048, 32, 8, 128, 16, 0, False), (1, 8192, 32, 8, 128, 16, 0, False),
    (16, 8192, 32, 8, 64, 16, 0, False), (16, 8192, 16, 4, 256, 16, 0, False),
    (1, 32768, 32, 8, 64, 16, 0, False), (1, 32768, 16, 4, 256, 16, 0, False),
    (16, 8192, 32, 8, 96, 1, 0, False), (16, 8192, 16, 4, 192, 1, 0, False),
    (64, 1024, 32, 8, 128, 1, 0, True), (16, 8192, 32, 8, 128, 16, 0, True),
    (16, 8192, 32, 8, 96, 1, 0, True), (16, 8192, 32, 8, 64, 16, 0, True),
    (64, 4096, 32, 8, 128, 16, 0, True), (64, 4096, 32, 8, 128, 16, 16, True),
    (64, 4096, 32, 8, 128, 1, 0, True), (64, 4096, 32, 8, 128, 1, 64, True),
    (64, 4096, 32, 8, 128, 1, 16, True), (64, 4096, 32, 8, 128, 1, 1, True)]


@triton.jit
def _read(source, target, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mixed = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK * tl.num_programs(0)):
        mixed ^= tl.load(source + start + place, mask=start + place < count, other=0)
    tl.store(target + tl.program_id(0), tl.sum(mixed))


def copy_rate():
    """GB/s of a copy of 2 GiB, read and written."""
    source = torch.empty(2**31, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    times = graph_medians({"copy": [lambda: target.copy_(source)]}, 4)
    return 2**32 / times["copy"] / 1e6


def graph_medians(contestants, count, rounds=7):
    """Milliseconds a call; a contestant is a list of calls, one a cache, which take turns."""
    graphs = {}
    stream = torch.cuda.current_stream()
    for name, calls in contestants.items():
        for call in calls:  # compiles, and sets attributes
            call()
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], stream=stream):
            for i in range(count):
                calls[i % len(calls)]()
    times = {name: [] for name in graphs}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(rounds + 1):
        for name, graph in graphs.items():
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / count)
    return {name: sorted(values[1:])[rounds // 2] for name, values in times.items()}


def reference(q, k, v, length):
    """Float64 result of sequence 0: q (H, Q, D), k and v (G, length, D); causal, bottom right."""
    heads, queries, dim = q.shape
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    hidden = torch.ones(queries, length, device=q.device).triu(length - queries + 1).bool()
    for h in range(heads):
        g = h // (heads // k.shape[0])
        scores = q[h].double() @ k[g, :length].double().T / math.sqrt(dim)
        out[h] = torch.softmax(scores.masked_fill(hidden, -math.inf), 1) @ v[g, :length].double()
    return out


def decode_row(attention, fa3, fa4, batch, cache, heads, group, dim, queries, page, ragged):
    torch.cuda.empty_cache()
    options = dict(device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((batch,), cache, device="cuda", dtype=torch.int32)
    if ragged:
        lengths = torch.randint(cache // 4, cache + 1, (batch,), device="cuda").int()
    used = lengths.sum().item() * group * dim * 4
    each = batch * cache * group * dim * 4
    sets = max(2, min(64, 400 * 2**20 // each + 1))
    shape = (batch * cache // page, page) if page else (batch, cache)
    caches = [torch.randn(2, *shape, group, dim, **options) for _ in range(sets)]
    q = torch.randn(batch, queries, heads, dim, **options)
    out = torch.empty_like(q)
    extra = {}
    if page:
        table = torch.randperm(batch * cache // page, device="cuda").int().view(batch, -1)
        extra = dict(page_table=table, page_size=page, max_key=cache)
    if ragged:
        extra["used_key"] = lengths
    ours, reads, peers = [], [], []
    for kv in caches:
        ours.append(attention.prepare(
            "forward", q=q.transpose(1, 2), k=kv[0].transpose(1, 2), v=kv[1].transpose(1, 2),
            out=out.transpose(1, 2), right=0, **extra))
        if ragged:
            peers.append(lambda kv=kv: fa3.flash_attn_with_kvcache(
                q, kv[0], kv[1], cache_seqlens=lengths, causal=True, num_splits=0))
        else:
            peers.append(lambda kv=kv: fa3.flash_attn_func(q, kv[0], kv[1], causal=True,
                                                           num_splits=0))
    ours[0]()
    first = [x[table[0].long()].reshape(cache, group, dim) if page else x[0] for x in caches[0]]
    true = reference(q[0].transpose(0, 1), *(x.transpose(0, 1) for x in first), lengths[0].item())
    error = ((out[0].transpose(0, 1).double() - true).norm() / true.norm()).item()
    assert error < 6e-3, f"decode differs from float64 by {error}"  # bf16 rounds at 2^-9
    contestants = {"flashloom": ours}
    if fa3 and not page:  # the wheel is built without pages
        contestants["fa3"] = peers
    if fa4 and page:
        paged = [lambda kv=kv: fa4._flash_attn_fwd(q, kv[0], kv[1], page_table=table,
                                                   seqused_k=lengths, causal=True)
                 for kv in caches]
        try:
            paged[0]()
            contestants["fa4"] = paged
        except Exception as error:  # a peer that refuses pages leaves the row to the others
            print("without fa4:", repr(error)[:200], flush=True)
    # As many bytes as the call uses, read in the order of memory by the best of these grids.
    words = [kv.view(torch.int32).flatten()[:used // 4] for kv in caches]
    target = torch.empty(4096, device="cuda", dtype=torch.int32)
    for blocks in (264, 528, 1056):
        for block in (4096, 8192):
            contestants[f"read {blocks} x {block}"] = [
                lambda w=w, n=blocks, b=block: _read[(n,)](w, target, w.numel(), BLOCK=b,
                                                           num_warps=8) for w in words]
    count = max(sets, int(min(40, 2e10 / used)))
    times = graph_medians(contestants, count)
    rates = {name: used / t / 1e6 for name, t in times.items()}
    read = max(rate for name, rate in rates.items() if name.startswith("read"))
    row = dict(B=batch, cache=cache, H=heads, G=group, D=dim, Q=queries, page=page, ragged=ragged,
               microseconds=round(1e3 * times["flashloom"], 1), flashloom=round(rates["flashloom"]),
               fa3=round(rates["fa3"]) if "fa3" in rates else None,
               fa4=round(rates["fa4"]) if "fa4" in rates else None, read=round(read),
               over_fa3=round(rates["flashloom"] / rates["fa3"], 3) if "fa3" in rates else None,
               over_fa4=round(rates["flashloom"] / rates["fa4"], 3) if "fa4" in rates else None,
               over_read=round(rates["flashloom"] / read, 3), error=round(error, 5))
    print(json.dumps(row), flush=True)
    return row


def decode_rows(attention, fa3, fa4=None):
    stream = torch.cuda.Stream()
    rows = []
    with torch.cuda.stream(stream):  # graphs are captured on the stream of the prepared calls
        copy = copy_rate()
        print(f"copy of 2 GiB: {copy:.0f} GB/s read and written", flush=True)
        for case in CASES:
            try:
                rows.append(dict(decode_row(attention, fa3, fa4, *case), copy=round(copy)))
            except Exception as error:  # a peer that refuses a shape leaves the others their row
                print("failed:", case, repr(error)[:200], flush=True)
    return rows
