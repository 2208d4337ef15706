#!/usr/bin/env python3
"""LoRA fine-tuning of one model on the same rows: Flashloom beside transformers + peft, on a CPU.

Usage: compare_finetune_cpu.py MODEL_DIRECTORY TRAIN.jsonl [--steps 12] [--threads 2]
           [--program build/cpu/bin/flashloom]

MODEL_DIRECTORY is a Hugging Face directory (make one from a GGUF with `flashloom merge`), the rows are
`messages` of one question and one answer. Peers train on padded batches of 8 rows, Flashloom on packed
bins of 1,024 tokens; both count rank 16 on all linears, f32, AdamW. Two settings: loss on the answers
alone, and loss on every token. Rates are medians over steps, without the first two. Needs torch,
transformers and peft.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = 8


def encode(tokenizer, row, every_token):
    prompt = tokenizer.apply_chat_template(row[:1], add_generation_prompt=True, tokenize=True,
                                           return_dict=False)
    answer = tokenizer(row[1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
    labels = (prompt if every_token else [-100] * len(prompt)) + answer
    return prompt + answer, labels


def padded(pairs, padding):
    width = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), width), padding)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (tokens, targets) in enumerate(pairs):
        ids[i, :len(tokens)] = torch.tensor(tokens)
        labels[i, :len(tokens)] = torch.tensor(targets)
        mask[i, :len(tokens)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def peer(options, rows, every_token):
    """(real tokens/s, padded tokens/s), medians over steps."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4,
                                  weight_decay=0)
    real, all_tokens = [], []
    for step in range(options.steps):
        chosen = [rows[(step * BATCH + i) % len(rows)] for i in range(BATCH)]
        batch = padded([encode(tokenizer, row, every_token) for row in chosen], 2)
        start = time.perf_counter()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        real.append(batch["attention_mask"].sum().item() / seconds)
        all_tokens.append(batch["attention_mask"].numel() / seconds)
    return statistics.median(real[2:]), statistics.median(all_tokens[2:])


def flashloom(options, rows, every_token):
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "rows.jsonl"
        if every_token:
            tokenizer = AutoTokenizer.from_pretrained(options.model)
            rows = [{"text": tokenizer.apply_chat_template(row[:1], add_generation_prompt=True,
                                                           tokenize=False) + row[1]["content"]}
                    for row in rows]
        else:
            rows = [{"messages": row} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        subprocess.run([options.program, "finetune", "--model", options.model, "--data", data,
                        "--output", folder + "/out", "--steps", str(options.steps), "--threads",
                        str(options.threads)], check=True, stderr=subprocess.DEVNULL)
        steps = [json.loads(line) for line in (pathlib.Path(folder) / "out/metrics.jsonl").open()]
    return (statistics.median(s["real_tokens_per_second"] for s in steps[2:]),
            statistics.median(s["mfu"] for s in steps[2:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="build/cpu/bin/flashloom")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [json.loads(line)["messages"] for line in options.data.open(encoding="utf-8")]
    print(f"{options.steps} steps, {options.threads} threads, tokens/s (median over steps)")
    print("| loss on | transformers + peft real / padded | Flashloom real | MFU | against padded rate"
          " | against real rate |\n|---|---|---|---|---|---|")
    for every_token in (False, True):
        real, with_padding = peer(options, rows, every_token)
        ours, mfu = flashloom(options, rows, every_token)
        print(f"| {'every token' if every_token else 'answers'} | {real:.0f} / {with_padding:.0f} | "
              f"{ours:.0f} | {100 * mfu:.0f} % | {ours / with_padding:.2f} x | {ours / real:.2f} x |",
              flush=True)


if __name__ == "__main__":
    main()
