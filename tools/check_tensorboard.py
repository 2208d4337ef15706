#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares every value with the log.

    pip install tensorboard
    flashloom finetune … --output RUN --tensorboard
    tools/check_tensorboard.py RUN

Also for a run that was ended and went on: what TensorBoard keeps must be the log's, each step once.
"""
import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing import event_accumulator

TAGS = {
    "loss/train": "loss",
    "loss/held_out": "eval_loss",
    "optimizer/learning_rate": "learning_rate",
    "optimizer/gradient_norm": "gradient_norm",
    "tokens_per_second/all": "all_tokens_per_second",
    "tokens_per_second/real": "real_tokens_per_second",
    "tokens_per_second/loss_bearing": "loss_tokens_per_second",
    "machine/mfu": "mfu",
    "machine/memory_bytes": "memory_bytes",
}


def float32(value) -> float:
    return struct.unpack("<f", struct.pack("<f", float(value)))[0]


def main() -> int:
    run = pathlib.Path(sys.argv[1])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = event_accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance={event_accumulator.SCALARS: 0})
    events.Reload()
    faults = sorted(set(TAGS) ^ set(events.Tags()["scalars"]))
    values = 0
    for tag, name in TAGS.items():
        if tag in faults:
            continue
        expected = [(line["step"], float32(line[name])) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        values += len(found)
        if found != expected:
            faults.append(f"{tag}: {len(found)} values, the log has {len(expected)}; first that differs: "
                          f"{next((p for p in zip(found, expected) if p[0] != p[1]), 'none')}")
    files = len(list((run / "tensorboard").iterdir()))
    print(f"{values} values in {files} files; {'all as in the log' if not faults else 'FAULTS'}")
    print("\n".join(str(fault) for fault in faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
