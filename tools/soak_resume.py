#!/usr/bin/env python3
"""Kills a training run at random moments until it is done, and compares its weights with those of
a run that was left alone, bit for bit: soak_resume.py PROGRAM FOLDER [--kills 200] [--seed 1].

The model is a random one of two layers that this script writes; data is a list of sums. Each start
takes another number of threads. Runs of LoRA, full weights and every option that draws random
numbers take turns until the kills are spent. Needs nothing but Python's standard library.
"""
import argparse
import hashlib
import json
import math
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 40
VARIANTS = [
    ["--method", "lora", "--lr", "1e-2"],
    ["--method", "full", "--lr", "1e-3", "--weight-decay", "0.1"],
    ["--method", "lora", "--lr", "1e-2", "--schedule", "wsd", "--neftune", "5", "--rslora"],
    ["--method", "full", "--lr", "1e-3", "--schedule", "linear", "--freeze", "embeddings,0"],
]


def write_model(folder):
    """A random SmolLM2-like model with the tokenizer of the tests."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048,
              "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
              "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "tests/golden/text/tokenizer_smollm2.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}))
    shapes = {"model.embed_tokens.weight": (2048, 48), "model.norm.weight": (48,)}
    for n in range(2):
        prefix = f"model.layers.{n}."
        shapes |= {prefix + "input_layernorm.weight": (48,),
                   prefix + "post_attention_layernorm.weight": (48,),
                   prefix + "self_attn.q_proj.weight": (48, 48),
                   prefix + "self_attn.k_proj.weight": (16, 48),
                   prefix + "self_attn.v_proj.weight": (16, 48),
                   prefix + "self_attn.o_proj.weight": (48, 48),
                   prefix + "mlp.gate_proj.weight": (96, 48),
                   prefix + "mlp.up_proj.weight": (96, 48),
                   prefix + "mlp.down_proj.weight": (48, 96)}
    draw = random.Random(5)
    header, data = {}, bytearray()
    for name, shape in shapes.items():
        count = math.prod(shape)
        values = [1.0 if len(shape) == 1 else draw.gauss(0, 0.15) for _ in range(count)]
        header[name] = {"dtype": "F32", "shape": list(shape),
                        "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack(f"<{count}f", *values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def write_data(path, first, last):
    rows = [json.dumps({"prompt": f"What is {i} + {i % 7}?", "completion": f"It is {i + i % 7}."})
            for i in range(first, last)]
    path.write_text("\n".join(rows) + "\n")


def command(program, folder, output, variant, threads):
    return [program, "finetune", "--model", folder / "model", "--data",
            f"{folder / 'train.jsonl'}:1.5", folder / "more.jsonl", "--held-out", "0.1",
            "--output", output, "--steps", str(STEPS), "--batch-tokens", "128", "--warmup", "3",
            "--eval-steps", "5", "--save-steps", "2", "--threads", str(threads), *variant]


def digests(output):
    """What must be equal: weights, the best weights, and the log but for its times."""
    result = {}
    for name in ("adapter_model.safetensors", "model.safetensors"):
        for path in (output / name, output / "best" / name):
            if path.exists():
                key = str(path.relative_to(output))
                result[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    log = []
    for line in (output / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        log.append([row.get(key) for key in ("step", "loss", "learning_rate", "eval_loss")])
    result["metrics"] = hashlib.sha256(json.dumps(log).encode()).hexdigest()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder / "model")
    write_data(folder / "train.jsonl", 0, 60)
    write_data(folder / "more.jsonl", 60, 100)
    draw = random.Random(arguments.seed)

    expected, seconds = [], []
    for number, variant in enumerate(VARIANTS):
        output = folder / f"whole-{number}"
        start = time.monotonic()
        subprocess.run(command(arguments.program, folder, output, variant, 2), check=True,
                       capture_output=True)
        seconds.append(time.monotonic() - start)
        expected.append(digests(output))
        print(f"variant {number}: {' '.join(variant)}: {seconds[-1]:.1f} s undisturbed", flush=True)

    kills = runs = faults = 0
    while kills < arguments.kills:
        number = runs % len(VARIANTS)
        output = folder / "killed"
        shutil.rmtree(output, ignore_errors=True)
        of_this_run = 0
        while True:
            # The longest waits let some starts end by themselves, so that runs do end.
            wait = draw.uniform(0, 1.2 * seconds[number])
            process = subprocess.Popen(
                command(arguments.program, folder, output, VARIANTS[number], 1 + kills % 3),
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                errors = process.communicate(timeout=wait)[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                errors = process.communicate()[1]
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                print(f"run {runs}: exit {process.returncode}: {errors.decode()[-500:]}", flush=True)
                faults += 1
                break
            kills += 1
            of_this_run += 1
        found = digests(output) if process.returncode == 0 else expected[number]
        if found != expected[number]:
            names = [key for key in expected[number] | found
                     if found.get(key) != expected[number].get(key)]
            kept = output.rename(folder / f"fault-{runs}")
            print(f"run {runs} (variant {number}, {of_this_run} kills): OTHER BITS in "
                  f"{', '.join(names)}; see {kept}", flush=True)
            faults += 1
        runs += 1
        print(f"{kills} kills, {runs} runs, {faults} faults", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
