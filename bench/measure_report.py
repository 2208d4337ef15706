#!/usr/bin/env python3
"""Time to write a run's report and to open it in Chromium, by the number of steps.

    bench/measure_report.py build/cpu/bin/flashloom [steps…]

The runs are made up, with every metric that a run logs. Writing is the whole command, from reading
the log to the file on the disk; opening is the page's own clock, from the start of loading to the
last plot drawn; so is zooming by half, which draws every plot anew. Each the best and the median of
five.
"""
import json
import math
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPEATS = 5


def make_run(folder: pathlib.Path, steps: int) -> None:
    folder.mkdir()
    draw = random.Random(steps)
    with open(folder / "metrics.jsonl", "w") as log:
        for step in range(1, steps + 1):
            loss = 2 + 1.7 * math.exp(-5 * step / steps) + draw.gauss(0, 0.1)
            norm = 1 + abs(draw.gauss(0, 0.3))
            speed = 320 + draw.gauss(0, 8)
            line = {"step": step, "epoch": step / steps, "loss": loss,
                    "learning_rate": 1e-4 * (1 + math.cos(math.pi * step / steps)), "gradient_norm": norm,
                    "largest_gradient_norm": norm / 2, "largest_gradient": "model.layers.0.self_attn.v_proj.lora_B",
                    "smallest_gradient_norm": norm / 900, "smallest_gradient": "model.layers.9.mlp.up_proj.lora_A",
                    "seconds": 1024 / speed, "guard_seconds": 0.003, "update_ratio": abs(draw.gauss(1e-3, 2e-4)),
                    "lost_updates": 0.0, "all_tokens_per_second": speed, "real_tokens_per_second": speed,
                    "loss_tokens_per_second": speed * abs(draw.gauss(0.12, 0.01)), "packing": 1 - abs(draw.gauss(0, 4e-3)),
                    "mfu": draw.gauss(0.7, 0.01), "memory_bytes": 1_300_000_000 + 4096 * step}
            log.write(json.dumps(line) + "\n")
            if step % max(1, steps // 20) == 0:
                log.write(json.dumps({"step": step, "eval_loss": loss + 0.1, "eval_tokens": 685}) + "\n")
    (folder / "run.json").write_text(json.dumps({"settings": {"method": "lora", "lora_rank": 16, "clip": 1.0}}))


def open_page(browser: str, page: pathlib.Path, folder: str) -> tuple[float, float]:
    """Milliseconds to the last plot, and to draw all plots again for a half of the steps."""
    html = page.read_text()
    tag = re.search(r'<script nonce="[0-9a-f]+">', html).group()
    probe = ("{const begin = performance.now(); view.zoom(0.5); document.body.getBoundingClientRect();"
             "document.documentElement.dataset.zoom = performance.now() - begin;}</script></body>")
    probed = pathlib.Path(folder) / "probed.html"
    probed.write_text(html.replace("</body>", tag + probe))
    dom = subprocess.run([browser, "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
                          "--window-size=1280,900", "--dump-dom", f"file://{probed}"],
                         capture_output=True, text=True, check=True).stdout[:2000]
    return (float(re.search(r'data-ready-milliseconds="([0-9.]+)"', dom).group(1)),
            float(re.search(r'data-zoom="([0-9.]+)"', dom).group(1)))


def main() -> None:
    program = os.path.abspath(sys.argv[1])
    sizes = [int(n) for n in sys.argv[2:]] or [100, 10_000, 100_000]
    browser = next((b for b in ("chromium-headless-shell", "chromium") if shutil.which(b)), None)
    print("| steps | log | page | written, best (median) | opened, best (median) | drawn again, best (median) |")
    print("|---|---|---|---|---|---|")
    for steps in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder) / "run"
            make_run(run, steps)
            written, opened, drawn = [], [], []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                subprocess.run([program, "report", run], check=True, capture_output=True)
                written.append(time.perf_counter() - begin)
            page = run / "report.html"
            for _ in range(REPEATS if browser else 0):
                ready, zoom = open_page(browser, page, folder)
                opened.append(ready / 1000)
                drawn.append(zoom / 1000)
            texts = [f"{min(t):.3f} s ({statistics.median(t):.3f})" if t else "no Chromium" for t in (written, opened, drawn)]
            print(f"| {steps:,} | {(run / 'metrics.jsonl').stat().st_size / 1e6:.2f} MB | {page.stat().st_size / 1e6:.2f} MB | "
                  + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
