#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random models of each kind with what transformers and peft say of
them.

    python tools/make_model_golden.py tests/golden/models

Each folder is a Hugging Face directory (weights in bfloat16) and a golden.safetensors with
  tokens, positions, labels (T) i32, cu_seqlens (documents + 1) i32: packed documents;
  logits (T, V), losses (T), loss (1): of each document run alone, in float64;
  gradient.<name>: of the sum of losses / loss-bearing tokens, for every weight;
  lora.<peft name>: adapters; lora_loss (1); lora_gradient.<peft name>.
Needs torch, transformers, peft and safetensors.
"""

import copy
import json
import pathlib
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file

VOCABULARY = 97
LENGTHS = [11, 14, 1]  # documents
RANK = 4
ALPHA = 6
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

common = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=56, num_hidden_layers=2,
              num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=64,
              bos_token_id=1, eos_token_id=2, attn_implementation="sdpa")
KINDS = {
    "llama2": (transformers.LlamaConfig(**common, rms_norm_eps=1e-5), ["q_proj", "v_proj"]),
    # Wavelengths 6, 20, 63, …: the three bands of the scaling (below 8, between, above 32) all
    # have members.
    "llama3": (transformers.LlamaConfig(
        **common | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32}), EVERY_LINEAR),
    "smollm2": (transformers.LlamaConfig(**common | dict(num_key_value_heads=1),
                                         tie_word_embeddings=True, rms_norm_eps=1e-5),
                EVERY_LINEAR),
    "qwen2": (transformers.Qwen2Config(**common | dict(num_key_value_heads=1),
                                       tie_word_embeddings=True), EVERY_LINEAR),
    "qwen3": (transformers.Qwen3Config(
        **common | dict(num_attention_heads=4, num_key_value_heads=2), head_dim=16,
        tie_word_embeddings=True), EVERY_LINEAR),
}


def randomize(model, generator):
    """Weights large enough that every part shows in the logits, norms off one, biases off zero."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = 0.3 * noise  # also the head where they are tied: logits of about 2
        else:
            value = noise * 1.2 / parameter.shape[1] ** 0.5
        parameter.data = value.to(torch.bfloat16).to(torch.float64)
    for name, buffer in model.named_buffers():  # frequencies stay float32, as they are in use
        assert "inv_freq" in name, name


def run(model, batch):
    """(logits (T, V), losses (T)) of each document alone."""
    logits, losses = [], []
    for begin, end in zip(batch["cu_seqlens"][:-1].tolist(), batch["cu_seqlens"][1:].tolist()):
        rows = model(batch["tokens"][None, begin:end].long()).logits[0]
        logits.append(rows)
        losses.append(torch.nn.functional.cross_entropy(
            rows, batch["labels"][begin:end].long(), reduction="none"))
    return torch.cat(logits), torch.cat(losses)


def make(kind, seed, folder):
    config, targets = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.double().eval()
    randomize(model, generator)

    total = sum(LENGTHS)
    labels = torch.randint(VOCABULARY, (total,), generator=generator)
    labels[torch.rand(total, generator=generator) < 0.4] = -100
    labels[LENGTHS[0] - 1] = -100  # its target would be the next document's
    batch = {
        "tokens": torch.randint(VOCABULARY, (total,), generator=generator).int(),
        "positions": torch.cat([torch.arange(n) for n in LENGTHS]).int(),
        "labels": labels.int(),
        "cu_seqlens": torch.tensor([0] + LENGTHS).cumsum(0).int(),
    }
    count = int((labels >= 0).sum())
    golden = dict(batch)

    logits, losses = run(model, batch)
    (losses.sum() / count).backward()
    golden["logits"] = logits.detach().float()
    golden["losses"] = losses.detach().float()
    golden["loss"] = losses.detach().sum()[None].float()
    for name, parameter in model.named_parameters():
        golden["gradient." + name] = parameter.grad.float()
        parameter.grad = None

    if folder.exists():
        shutil.rmtree(folder)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    adapted = peft.get_peft_model(model, peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0.0,
        task_type="CAUSAL_LM")).double()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (noise * 0.8 / parameter.shape[1] ** 0.5).float().double()
    _, losses = run(adapted, batch)
    (losses.sum() / count).backward()
    golden["lora_loss"] = losses.detach().sum()[None].float()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "")
            golden["lora." + name] = parameter.detach().float()
            golden["lora_gradient." + name] = parameter.grad.float()
        else:
            assert parameter.grad is None, name

    save_file({name: tensor.contiguous() for name, tensor in golden.items()},
              folder / "golden.safetensors",
              metadata={"lora_rank": str(RANK), "lora_alpha": str(ALPHA),
                        "lora_targets": ",".join(targets),
                        "transformers": transformers.__version__, "peft": peft.__version__})
    gradients = {name: tensor.abs().max().item() for name, tensor in golden.items()
                 if name.startswith("gradient.")}
    weakest = min(gradients, key=gradients.get)
    print(f"{kind}: loss {losses.sum().item() / count:.3f} (lora), smallest of the largest "
          f"gradients {gradients[weakest]:.2e} ({weakest})")


def main():
    folder = pathlib.Path(sys.argv[1])
    for seed, kind in enumerate(KINDS):
        make(kind, seed, folder / kind)
    print(json.dumps({"bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())}))


if __name__ == "__main__":
    main()
