#!/usr/bin/env python3
"""Our attention on the CPU beside PyTorch's, in one process, one after the other.

Each row is measured in turns (ours, PyTorch, ours, ...) and the medians are printed, in GFLOP/s of the
visible pairs: 4 D a pair forward, 10 D backward. PyTorch's backward is its autograd call alone. The
share is that of the machine's f32 matrix products, 2048 x 2048 x 2048, the best of torch.mm measured
between the rows of the same run.

    cmake --build --preset cpu --target flashloom_attention_shared
    compare_attention_cpu.py --threads 2 --parts dense
    compare_attention_cpu.py --threads 2 --parts windows decode blocks

Parts: dense (scaled_dot_product_attention, full and causal), windows (against its masked call and
flex_attention), blocks (block masks against flex_attention), decode (GB/s of the cache, against
PyTorch's call and torch.sum over 256 MB, measured in the same turns).
"""
import argparse
import json
import os
import pathlib
import statistics
import sys
import time


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="build/cpu/libflashloom_attention.so")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="least time of a measurement")
    parser.add_argument("--parts", nargs="*", default=["dense"],
                        choices=["dense", "windows", "blocks", "decode"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--dtypes", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--passes", nargs="*", default=["forward", "backward"])
    parser.add_argument("--masks", nargs="*", default=["full", "causal"])
    parser.add_argument("--windows", type=int, nargs="*", default=[64, 128, 256, 1024, 4096])
    parser.add_argument("--ours-only", action="store_true", help="leave PyTorch out")
    parser.add_argument("--flex", action="store_true", help="flex_attention too (compiles for a minute)")
    parser.add_argument("--json", help="write the rows there too")
    return parser.parse_args()


arguments = parse()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "attention"))
import torch  # noqa: E402  (reads OMP_NUM_THREADS; its OpenMP then serves our library too)
from flashloom_attention import Attention  # noqa: E402

torch.set_num_threads(arguments.threads)
ours = Attention(os.path.abspath(arguments.library))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
attend = torch.nn.functional.scaled_dot_product_attention
rows = []


def seconds(call):
    """Seconds of one call, as the mean over at least --seconds."""
    runs, start = 0, time.perf_counter()
    while True:
        call()
        runs += 1
        spent = time.perf_counter() - start
        if spent >= arguments.seconds:
            return spent / runs


def in_turns(calls):
    """Median seconds of each call, measured one after the other in rounds."""
    times = [[] for _ in calls]
    for call in calls:
        if call:
            call()
    for _ in range(arguments.rounds):
        for i, call in enumerate(calls):
            if call:
                times[i].append(seconds(call))
    return [statistics.median(t) if t else None for t in times]


class Products:
    """The rate of f32 matrix products, the best seen so far."""

    def __init__(self):
        self.a, self.b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        self.best = 0

    def measure(self):
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(self.a, self.b)
            self.best = max(self.best, 2 * 2048**3 / (time.perf_counter() - start) * 1e-9)
        return self.best


def report(name, flops, mine, theirs, gemm=None, unit="GFLOP/s", **more):
    a = flops / mine * 1e-9
    b = flops / theirs * 1e-9 if theirs else None
    row = {"name": name, "ours": a, "torch": b, "of_bound": a / gemm if gemm else None, **more}
    rows.append(row)
    print(f"{name:42} {a:8.1f} {b if b else float('nan'):8.1f} "
          f"{a / b if b else float('nan'):7.2f} {a / gemm if gemm else float('nan'):6.2f} "
          + " ".join(f"{key} {value:.2f}" for key, value in more.items()), flush=True)


def tensors(dtype, heads, length, dim):
    return [torch.randn((1, heads, length, dim), dtype=DTYPES[dtype]) for _ in range(4)]


def our_calls(q, k, v, dout, left, right, **more):
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    shared = dict(q=q, k=k, v=v, out=out, lse=lse, left=left, right=right, **more)
    forward = ours.prepare("forward", **shared)
    forward()
    backward = ours.prepare("backward", **shared, dout=dout, dq=torch.empty_like(q),
                            dk=torch.empty_like(k), dv=torch.empty_like(v))
    return {"forward": forward, "backward": backward}


def torch_calls(call, q, k, v, dout, direction):
    """One call of a peer: without gradients forward, its autograd call backward."""
    if direction == "forward":
        def forward():
            with torch.no_grad():
                call(q, k, v)
        return forward
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = call(*leaves)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def dense(products):
    for dtype in arguments.dtypes:
        for dim in arguments.dims:
            for length in arguments.lengths:
                # Enough work for every row, and long rows that end within seconds.
                heads = 512 // dim if length <= 2048 else 2
                for mask in arguments.masks:
                    causal = mask == "causal"
                    q, k, v, dout = tensors(dtype, heads, length, dim)
                    mine = our_calls(q, k, v, dout, -1, 0 if causal else -1)
                    pairs = heads * (length * (length + 1) / 2 if causal else length * length)
                    for direction in arguments.passes:
                        theirs = None if arguments.ours_only else torch_calls(
                            lambda a, b, c: attend(a, b, c, is_causal=causal), q, k, v, dout,
                            direction)
                        a, b = in_turns([mine[direction], theirs])
                        report(f"{direction} {dtype} D{dim} {mask} S{length} H{heads}",
                               pairs * dim * (4 if direction == "forward" else 10), a, b,
                               products.measure())


def window_pairs(length, window):
    """Causal window: each query sees itself and the window - 1 keys before it."""
    return window * length - window * (window - 1) / 2


def flex_calls(mask_mod, length, block_size=None):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    options = {} if block_size is None else {"BLOCK_SIZE": block_size}
    mask = create_block_mask(mask_mod, None, None, length, length, device="cpu", **options)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def windows(products):
    length, heads, dim = 8192, 2, 64
    q, k, v, dout = tensors("f32", heads, length, dim)
    for window in arguments.windows:
        mine = our_calls(q, k, v, dout, window - 1, 0)
        for direction in arguments.passes:
            theirs = flex = None
            if not arguments.ours_only and window == 128:
                i = torch.arange(length)
                distance = i[:, None] - i[None, :]
                mask = (distance >= 0) & (distance < window)
                theirs = torch_calls(lambda a, b, c: attend(a, b, c, attn_mask=mask), q, k, v, dout,
                                     direction)
            if arguments.flex and direction == "forward":
                flex = torch_calls(flex_calls(lambda b, h, i, j: (i >= j) & (i - j < window),
                                              length), q, k, v, dout, direction)
            a, b, c = in_turns([mine[direction], theirs, flex])
            flops = heads * window_pairs(length, window) * dim * (4 if direction == "forward" else 10)
            more = {"flex": flops / c * 1e-9, "over_flex": c / a} if c else {}
            report(f"{direction} f32 D{dim} window {window} S{length} H{heads}", flops, a, b,
                   products.measure(), **more)


def block_lists(kept):
    """Compressed rows of a block mask, both ways, as the C interface takes them."""
    def compress(mask):
        offsets = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).to(torch.int32)
        return offsets[None, None].contiguous(), mask.nonzero()[:, 1].to(torch.int32)[None, None]
    offsets, columns = compress(kept)
    column_offsets, block_rows = compress(kept.T.contiguous())
    return dict(block_row_offsets=offsets, block_columns=columns.contiguous(),
                block_column_offsets=column_offsets, block_transposed_rows=block_rows.contiguous())


def blocks(products):
    length, heads, dim, block = 8192, 2, 64, 128
    q, k, v, dout = tensors("f32", heads, length, dim)
    count = length // block
    order = torch.rand((count, count), generator=torch.Generator().manual_seed(1))
    for density in (1, 0.5, 0.25, 0.1, 0.05):
        kept = order < density
        mine = our_calls(q, k, v, dout, -1, -1, block_rows=block, block_keys=block,
                         **block_lists(kept))
        flops = heads * int(kept.sum()) * block * block * dim
        for direction in arguments.passes:
            flex = None
            if arguments.flex and direction == "forward":
                flex = torch_calls(flex_calls(
                    lambda b, h, x, y: kept[x // block, y // block], length, block), q, k, v, dout,
                    direction)
            a, b = in_turns([mine[direction], flex])
            report(f"{direction} f32 D{dim} blocks {density:g} S{length} H{heads}",
                   flops * (4 if direction == "forward" else 10), a, b, products.measure())


def decode():
    """GB/s of K and V beside reading memory, in turns: what neighbours on the machine leave of its
    bandwidth changes within seconds."""
    reading = torch.randn(1 << 26)  # 256 MB
    read_bytes = reading.numel() * 4
    for dtype in arguments.dtypes:
        for batch, heads, key_heads, keys, dim in ((1, 32, 8, 32768, 128), (16, 32, 8, 2048, 128),
                                                   (1, 9, 3, 65536, 64), (4, 8, 8, 8192, 64)):
            kind = DTYPES[dtype]
            q = torch.randn((batch, heads, 1, dim), dtype=kind)
            k, v = (torch.randn((batch, key_heads, keys, dim), dtype=kind) for _ in range(2))
            out = torch.empty_like(q)
            mine = ours.prepare("forward", q=q, k=k, v=v, out=out, right=0)
            theirs = None if arguments.ours_only else torch_calls(
                lambda a, b, c: attend(a, b, c, enable_gqa=heads != key_heads), q, k, v, None,
                "forward")
            a, b, read = in_turns([mine, theirs, lambda: torch.sum(reading)])
            size = 2 * k.numel() * k.element_size()
            rate = read_bytes / read * 1e-9
            report(f"decode {dtype} D{dim} B{batch} H{heads}:{key_heads} S{keys} (GB/s)", size, a, b,
                   rate, reading=rate)


def main():
    products = Products()
    for _ in range(3):
        products.measure()
    print(f"torch {torch.__version__}, {arguments.threads} threads, f32 products {products.best:.0f} "
          "GFLOP/s")
    print(f"{'':42} {'ours':>8} {'torch':>8} {'ratio':>7} {'share':>6}")
    for part in arguments.parts:
        if part == "decode":
            decode()
        else:
            {"dense": dense, "windows": windows, "blocks": blocks}[part](products)
    print(f"f32 products at the end {products.best:.0f} GFLOP/s")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"threads": arguments.threads, "gemm": products.best, "rows": rows}, file,
                      indent=1)


if __name__ == "__main__":
    main()
