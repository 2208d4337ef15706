#!/usr/bin/env python3
"""Peak of anonymous memory of real runs against the plan, and time by recompute level.

    bench/measure_training_memory.py memory PROGRAM MODEL [MODEL ...] [only=WHAT/WHAT ...]
    bench/measure_training_memory.py time PROGRAM MODEL [only=WHAT/WHAT ...]
    bench/measure_training_memory.py random DIRECTORY TOKENIZER_DIRECTORY
        [hidden intermediate layers heads kv_heads vocabulary]

`memory` samples RssAnon of /proc/PID/status every 5 ms, mapped files thus apart, and prints for each
model, method and length the plan, the peak and their ratio. `time` prints seconds a step of each
recompute level, the guards' share and the time of a checkpoint. `random` writes a model of random
weights (the shape of Qwen2.5-0.5B with 6 layers unless told) to measure with. `only` takes rows with
one of the words: "only=full/LoRA only=1024", "only=full only=none/norms".
"""

import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

WORDS = "the model trains on rows of text whose length is chosen so that bins are nearly full".split()


def write_rows(path, tokens, rows):
    """Rows that are longer than `tokens` whatever the tokenizer, so that each is cut to that."""
    generator = random.Random(1)
    with open(path, "w") as file:
        for _ in range(rows):
            text = " ".join(generator.choice(WORDS) for _ in range(tokens + 8))
            file.write(json.dumps({"text": text}) + "\n")


def run(program, arguments):
    """The JSON of a run, and its largest RssAnon."""
    process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    peak = 0
    status = f"/proc/{process.pid}/status"
    while process.poll() is None:
        try:
            with open(status) as file:
                for line in file:
                    if line.startswith("RssAnon:"):
                        peak = max(peak, int(line.split()[1]) * 1024)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.005)
    out, err = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)}\n{err}")
    return json.loads(out), peak


METHODS = {
    "full": ["--method", "full"],
    "LoRA": ["--method", "lora"],
    "full, 8-bit moments": ["--method", "full", "--optimizer", "adamw8bit"],
    "full, bf16, 8-bit": ["--method", "full", "--optimizer", "adamw8bit", "--weight-dtype",
                          "bf16"],
    "full, from layer 4 up": ["--method", "full", "--freeze", "embeddings", "0-3"],
    "LoRA, bf16 base": ["--method", "lora", "--weight-dtype", "bf16"],
}


def wanted(only, *names):
    """Whether a row of these names is among those asked for."""
    return all(any(name in words for name in names) for words in only)


def measure_memory(program, models, only):
    print(f"{'model':<18} {'method':<21} {'length':>6} {'plan':>9} {'peak':>9} {'ratio':>7}")
    for method, flags in METHODS.items():
        for model in models:
            for length in (256, 1024):
                if not wanted(only, method, str(length)):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    write_rows(folder + "/train.jsonl", length, 4)
                    result, peak = run(program, [
                        "finetune", "--json", "--model", model, "--data", folder + "/train.jsonl",
                        "--output", folder + "/run", "--seq-len", str(length), "--batch-tokens",
                        str(length), "--steps", "1", *flags])
                plan = result["planned_bytes"]
                print(f"{os.path.basename(model.rstrip('/')):<18} {method:<21} {length:>6} "
                      f"{plan / 1e6:>7.0f} MB {peak / 1e6:>7.0f} MB {peak / plan:>7.3f}",
                      flush=True)


def steps_of(folder):
    with open(folder + "/run/metrics.jsonl") as file:
        return [line for line in map(json.loads, file) if "seconds" in line]


def measure_time(program, model, only):
    print(f"{'method':<6} {'recompute':<10} {'s a step':>8} {'plan':>9} {'guards':>8} {'save':>7}")
    for method in ("full", "lora"):
        for level in ("none", "norms", "attention", "blocks"):
            if not wanted(only, method, level):
                continue
            with tempfile.TemporaryDirectory() as folder:
                write_rows(folder + "/train.jsonl", 256, 8)
                result, _ = run(program, [
                    "finetune", "--json", "--model", model, "--data", folder + "/train.jsonl",
                    "--output", folder + "/run", "--seq-len", "256", "--batch-tokens", "512",
                    "--steps", "3", "--method", method, "--recompute", level])
                steps = steps_of(folder)
                seconds = statistics.median(step["seconds"] for step in steps)
                guards = sum(step["guard_seconds"] for step in steps)
                share = guards / sum(step["seconds"] for step in steps)
                save = result["checkpoint_seconds"] / max(1, result["checkpoints"])
                print(f"{method:<6} {level:<10} {seconds:>8.2f} "
                      f"{result['planned_bytes'] / 1e6:>6.0f} MB {100 * share:>6.3f} % "
                      f"{save:>5.2f} s", flush=True)


def write_random_model(directory, tokenizer, sizes):
    hidden, ffn, layers, heads, kv_heads, vocabulary = sizes or (896, 4864, 6, 14, 2, 151936)
    os.makedirs(directory, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if os.path.exists(f"{tokenizer}/{name}"):
            shutil.copy(f"{tokenizer}/{name}", f"{directory}/{name}")
    with open(directory + "/config.json", "w") as file:
        json.dump({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
                   "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
                   "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                   "vocab_size": vocabulary, "max_position_embeddings": 32768,
                   "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
                   "hidden_act": "silu", "torch_dtype": "bfloat16"}, file)
    head = hidden // heads
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for n in range(layers):
        prefix = f"model.layers.{n}."
        for name, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, heads * head)
        shapes[prefix + "mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (ffn, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = random.Random(3)
    with open(directory + "/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            if "norm" in name:
                file.write(b"\x80\x3f" * count)  # ones
                continue
            # Numbers of 2^-6 in size and either sign: the upper byte of a bf16 holds sign and
            # exponent, the lower the mantissa.
            lower = generator.randbytes(count)
            data = bytearray(2 * count)
            data[0::2] = lower
            data[1::2] = bytes(0x3c | (b & 0x80) for b in generator.randbytes(count))
            file.write(data)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    task, *rest = sys.argv[1:]
    only = [word[5:].split("/") for word in rest if word.startswith("only=")]
    rest = [word for word in rest if not word.startswith("only=")]
    if task == "memory":
        measure_memory(rest[0], rest[1:], only)
    elif task == "time":
        measure_time(rest[0], rest[1], only)
    elif task == "random":
        write_random_model(rest[0], rest[1], tuple(map(int, rest[2:])))
    else:
        sys.exit(__doc__)


main()
