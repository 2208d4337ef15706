#!/usr/bin/env python3
"""LoRA+ beside LoRA at equal budget on the demo's task: held-out loss over steps.

    bench/lora_plus.py PROGRAM MODEL TRAIN HELD FOLDER

Tunes the learning rate of each on seed 0 over a grid, then repeats the best one with seeds 1 and 2.
Runs that FOLDER holds already are read, not made again (`flashloom finetune` resumes an interrupted
one), so the script may be stopped and started.
"""
import json
import pathlib
import statistics
import subprocess
import sys

STEPS, TOKENS, EVERY = 24, 512, 8
# Published rates for LoRA lie around 2e-4 to 1e-3; LoRA+'s B learns 16 times as fast.
GRID = {1: [2e-4, 5e-4, 1e-3, 2e-3, 4e-3], 16: [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]}
NAMES = {1: "LoRA", 16: "LoRA+"}


def losses(arguments, ratio, rate, seed):
    program, model, train, held, folder = arguments
    output = pathlib.Path(folder) / f"ratio{ratio}-rate{rate}-seed{seed}"
    subprocess.run(
        [program, "finetune", "--model", model, "--data", train, "--eval-data", held, "--output",
         output, "--lora-rank", "16", "--lora-alpha", "32", "--lora-plus", str(ratio), "--lr",
         str(rate), "--seed", str(seed), "--warmup", "3", "--steps", str(STEPS), "--batch-tokens",
         str(TOKENS), "--seq-len", "512", "--eval-steps", str(EVERY), "--save-steps", "4",
         "--threads", "1"], check=True, capture_output=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = [row["eval_loss"] for row in rows if "eval_loss" in row]
    print(f"{NAMES[ratio]:6} rate {rate:g} seed {seed}: " +
          " ".join(f"{loss:.4f}" for loss in found), flush=True)
    return found


def main():
    arguments = sys.argv[1:6]
    for ratio, rates in GRID.items():
        ends = {rate: losses(arguments, ratio, rate, 0)[-1] for rate in rates}
        best = min(ends, key=ends.get)
        runs = [losses(arguments, ratio, best, seed) for seed in range(3)]
        for index in range(len(runs[0])):
            values = [run[index] for run in runs]
            print(f"{NAMES[ratio]}, rate {best:g}, after step {index * EVERY}: "
                  f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
