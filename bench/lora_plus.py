#!/usr/bin/env python3
"""LoRA+ beside LoRA at equal budget on the demo's task: held-out loss over steps.

    bench/lora_plus.py PROGRAM MODEL TRAIN HELD FOLDER [--steps N] [--jobs N] [--threads N]
                       [--seconds N]

Each method's learning rate is tuned on seed 0 over a grid of factor 2, which grows until the best rate
has a worse one on both sides; that rate and its neighbours are then run with seeds 1 and 2. Finished
runs are lines of FOLDER/runs.jsonl and are not made again, so the script may be stopped and started;
with --seconds it starts no run that would not end in time. At the end, or with what there is, it
prints a table.
"""
import argparse
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time

# Where earlier runs of 24 steps were lowest: 2e-3 or more for LoRA, 2e-4 or less for LoRA+, whose B
# learns 16 times as fast.
GRID = {1: [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], 16: [2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4]}
NAMES = {1: "LoRA", 16: "LoRA+"}
SEEDS = (0, 1, 2)
EVERY = 8  # steps between evaluations


class Runs:
    """Finished runs: (ratio, rate, seed) -> held-out losses; infinite where a run diverged."""

    def __init__(self, folder, steps):
        self.path, self.steps, self.done = pathlib.Path(folder) / "runs.jsonl", steps, {}
        if self.path.exists():
            for row in map(json.loads, self.path.read_text().splitlines()):
                if row["steps"] == steps:
                    self.done[row["ratio"], row["rate"], row["seed"]] = row["losses"]

    def add(self, key, losses, seconds):
        self.done[key] = losses
        ratio, rate, seed = key
        with open(self.path, "a") as file:
            file.write(json.dumps({"ratio": ratio, "rate": rate, "seed": seed, "steps": self.steps,
                                   "seconds": round(seconds, 1), "losses": losses}) + "\n")
        print(f"{NAMES[ratio]:6} rate {rate:g} seed {seed}: " +
              " ".join(f"{loss:.4f}" for loss in losses) + f"  ({seconds:.0f} s)", flush=True)

    def rates(self, ratio):
        """The grid, with rates beyond an end where the lowest loss lies."""
        rates = list(GRID[ratio])
        while all((ratio, rate, 0) in self.done for rate in rates):
            best = self.best(ratio, rates, seeds=(0,))
            if best == rates[0]:
                rates.insert(0, rates[0] / 2)
            elif best == rates[-1]:
                rates.append(rates[-1] * 2)
            else:
                break
        return rates

    def end(self, ratio, rate, seeds):
        found = [self.done[ratio, rate, seed][-1] for seed in seeds
                 if (ratio, rate, seed) in self.done]
        return statistics.mean(found) if found else math.inf

    def best(self, ratio, rates, seeds=SEEDS):
        return min(rates, key=lambda rate: self.end(ratio, rate, seeds))

    def wanted(self):
        """What to run next, the most telling first."""
        keys = [(ratio, rate, 0) for ratio in GRID for rate in self.rates(ratio)]
        for ratio in GRID:
            rates = self.rates(ratio)
            if all((ratio, rate, 0) in self.done for rate in rates):
                at = rates.index(self.best(ratio, rates, seeds=(0,)))
                near = [rates[at]] + rates[at + 1:at + 2] + rates[max(at - 1, 0):at]
                keys += [(ratio, rate, seed) for rate in near for seed in SEEDS[1:]]
        return [key for key in keys if key not in self.done]


def losses_of(options, key):
    ratio, rate, seed = key
    output = pathlib.Path(options.folder) / f"ratio{ratio}-rate{rate:g}-seed{seed}"
    finished = subprocess.run(
        [options.program, "finetune", "--model", options.model, "--data", options.train,
         "--eval-data", options.held, "--output", output, "--resume", "never", "--lora-rank", "16",
         "--lora-alpha", "32", "--lora-plus", str(ratio), "--lr", str(rate), "--seed", str(seed),
         "--warmup", "3", "--steps", str(options.steps), "--batch-tokens", "512", "--seq-len", "512",
         "--eval-steps", str(EVERY), "--threads", str(options.threads)],
        capture_output=True, text=True)
    if finished.returncode != 0 and "is not finite" not in finished.stderr:
        raise RuntimeError(finished.stderr)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(output)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    return losses if finished.returncode == 0 else losses + [math.inf]


def work(options, runs):
    """`jobs` runs at a time, until none is wanted or the time is over."""
    start, longest, running = time.monotonic(), [0.0], set()
    state = threading.Condition()
    failures = []

    def worker():
        while True:
            with state:
                while not failures:
                    over = options.seconds and (time.monotonic() - start + 1.1 * longest[0] >
                                                options.seconds)
                    keys = [] if over else [key for key in runs.wanted() if key not in running]
                    if keys or not running or over:
                        break
                    state.wait()  # what runs may want more
                if failures or not keys:
                    return
                running.add(keys[0])
            begin = time.monotonic()
            try:
                losses = losses_of(options, keys[0])
            except Exception as error:  # told by main(); the other workers end
                losses = None
                failures.append(error)
            with state:
                running.discard(keys[0])
                if losses is not None:
                    longest[0] = max(longest[0], time.monotonic() - begin)
                    runs.add(keys[0], losses, time.monotonic() - begin)
                state.notify_all()

    workers = [threading.Thread(target=worker) for _ in range(options.jobs)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    if failures:
        sys.exit(str(failures[0]))


def table(runs):
    for ratio in GRID:
        rates = runs.rates(ratio)
        best = runs.best(ratio, rates)
        if math.isinf(runs.end(ratio, best, SEEDS)):
            continue
        inside = rates[0] < best < rates[-1]
        print(f"{NAMES[ratio]}, {'bracketed' if inside else 'not bracketed'}; loss at the end by rate "
              f"(mean over its seeds): " + ", ".join(
                  f"{rate:g}: {runs.end(ratio, rate, SEEDS):.4f}" for rate in rates))
        found = [runs.done[ratio, best, seed] for seed in SEEDS if (ratio, best, seed) in runs.done]
        for index, values in enumerate(zip(*found)):
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            print(f"  rate {best:g}, {len(values)} seeds, after step "
                  f"{min(index * EVERY, runs.steps)}: "
                  f"{statistics.mean(values):.4f}{spread}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "model", "train", "held", "folder"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=56, help="the demo's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    parser.add_argument("--seconds", type=float, default=0, help="0: until all is done")
    options = parser.parse_args()
    pathlib.Path(options.folder).mkdir(parents=True, exist_ok=True)
    runs = Runs(options.folder, options.steps)
    work(options, runs)
    table(runs)
    left = runs.wanted()
    print(f"{len(left)} runs left" if left else "complete")


if __name__ == "__main__":
    main()
