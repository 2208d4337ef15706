#!/usr/bin/env python3
"""Adds DoRA to tests/golden/models: what peft says of the tiny models there.

    python tools/make_dora_golden.py tests/golden/models

In <model>/dora: adapter_config.json and adapter_model.safetensors as peft saves them, and
golden.safetensors with loss (1), logits (T, V) of the documents of <model>/golden.safetensors, each
run alone in float64; gradient.<name in the adapter's file> of the sum of losses / loss-bearing
tokens; and merged.<name>: every linear after merge_and_unload(). Needs torch, transformers, peft and
safetensors.
"""

import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

# A head of its own, biases, QK norm; not all linears adapted in the last.
KINDS = {"llama2": ["q_proj", "v_proj", "down_proj"],
         "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
         "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
RANK, ALPHA = 4, 6


def run(model, batch):
    logits, losses = [], []
    for begin, end in zip(batch["cu_seqlens"][:-1].tolist(), batch["cu_seqlens"][1:].tolist()):
        rows = model(batch["tokens"][None, begin:end].long()).logits[0]
        logits.append(rows)
        losses.append(torch.nn.functional.cross_entropy(
            rows, batch["labels"][begin:end].long(), reduction="none"))
    return torch.cat(logits), torch.cat(losses)


def make(folder, targets, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = load_file(folder / "golden.safetensors")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0.0, use_dora=True,
        task_type="CAUSAL_LM")).double()
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:
            # The norms of the rows, off by some: otherwise scaling would not show.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (parameter.data * (1 + 0.3 * noise)).float().double()
        elif "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (noise * 0.8 / parameter.shape[1] ** 0.5).float().double()
    logits, losses = run(model, batch)
    (losses.sum() / (batch["labels"] >= 0).sum()).backward()
    golden = {"loss": losses.detach().sum()[None].float(), "logits": logits.detach().float()}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "").replace("magnitude_vector.weight",
                                                        "magnitude_vector")
            golden["gradient." + name] = parameter.grad.float()
    output = folder / "dora"
    output.mkdir(exist_ok=True)
    model.float().save_pretrained(output)
    (output / "README.md").unlink(missing_ok=True)
    merged = model.double().merge_and_unload()
    for name, parameter in merged.named_parameters():
        if "_proj.weight" in name and any(target in name for target in targets):
            golden["merged." + name] = parameter.detach().float()
    save_file({name: tensor.contiguous() for name, tensor in golden.items()},
              output / "golden.safetensors", metadata={"peft": peft.__version__})
    print(folder.name, golden["loss"].item(), sorted(load_file(output / "adapter_model.safetensors"))[:3])


def main():
    for seed, (kind, targets) in enumerate(KINDS.items()):
        make(pathlib.Path(sys.argv[1]) / kind, targets, seed)


if __name__ == "__main__":
    main()
