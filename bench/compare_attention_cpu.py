#!/usr/bin/env python3
"""Our attention on the CPU beside PyTorch's scaled_dot_product_attention, one row after the other.

Each row is measured in turns (ours, PyTorch, ours, ...), and the medians are printed in GFLOP/s of the
visible pairs: 4 D a pair forward, 10 D backward. PyTorch's backward is its autograd call alone.

    compare_attention_cpu.py --bench build/cpu/bin/attention_bench --threads 1 [--clock cpu]

--clock wall goes by the clock on the wall (on a quiet machine); --clock cpu by CPU time of one thread,
which other jobs on the machine disturb less and which means nothing with more threads (they wait by
spinning).
"""
import argparse
import json
import os
import statistics
import subprocess
import time


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/cpu/bin/attention_bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="least time of a measurement")
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 8192])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--dtypes", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--passes", nargs="*", default=["forward", "backward"])
    parser.add_argument("--masks", nargs="*", default=["full", "causal"])
    parser.add_argument("--json", help="write the rows there too")
    return parser.parse_args()


arguments = parse()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
import torch  # noqa: E402  (reads OMP_NUM_THREADS)

torch.set_num_threads(arguments.threads)


def ours(name):
    """GFLOP/s of one benchmark of attention_bench, and the rate of matrix products beside it."""
    run = subprocess.run(
        [arguments.bench, f"--benchmark_filter=^{name}/real_time$", "--benchmark_format=json",
         f"--benchmark_min_time={arguments.seconds}"],
        capture_output=True, text=True, check=True, env=os.environ)
    result = json.loads(run.stdout)["benchmarks"][0]
    gemm = result["core_GFLOPS"] / result["of_gemm"]
    if arguments.clock == "cpu":
        return result["core_GFLOPS"] * arguments.threads, gemm
    return result["GFLOPS"], gemm


def peer(direction, dtype, dim, causal, length, heads):
    """A function that measures PyTorch once, in GFLOP/s."""
    shape = (1, heads, length, dim)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    q, k, v, dout = (torch.randn(shape, dtype=kind) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_(direction == "backward")
    pairs = heads * (length * (length + 1) / 2 if causal else length * length)
    flops = pairs * dim * (4 if direction == "forward" else 10)
    attend = torch.nn.functional.scaled_dot_product_attention
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    out = attend(q, k, v, is_causal=causal)

    def once():
        if direction == "forward":
            with torch.no_grad():
                attend(q, k, v, is_causal=causal)
        else:
            torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)

    def measure():
        once()
        runs, start = 0, clock()
        while clock() - start < arguments.seconds or runs == 0:
            once()
            runs += 1
        rate = flops * runs / (clock() - start) * 1e-9
        return rate * (arguments.threads if arguments.clock == "cpu" else 1)

    return measure


def main():
    rows = []
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.clock} clock, GFLOP/s")
    print(f"{'':42} {'ours':>7} {'torch':>7} {'ratio':>6} {'of gemm':>8}")
    for dtype in arguments.dtypes:
        for dim in arguments.dims:
            for mask in arguments.masks:
                for length in arguments.lengths:
                    for direction in arguments.passes:
                        heads = 512 // dim
                        name = f"{direction}/{dtype}/D{dim}/{mask}/S{length}/B1/H{heads}:{heads}"
                        theirs = peer(direction, dtype, dim, mask == "causal", length, heads)
                        mine, other, gemm = [], [], []
                        for _ in range(arguments.rounds):
                            rate, product = ours(name)
                            mine.append(rate)
                            gemm.append(product)
                            other.append(theirs())
                        a, b = statistics.median(mine), statistics.median(other)
                        share = a / (statistics.median(gemm) * arguments.threads)
                        print(f"{name:42} {a:7.1f} {b:7.1f} {a / b:6.2f} {share:8.2f}", flush=True)
                        rows.append({"name": name, "ours": a, "torch": b, "of_gemm": share})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"threads": arguments.threads, "clock": arguments.clock, "rows": rows}, file,
                      indent=1)


if __name__ == "__main__":
    main()
