#!/usr/bin/env python3
"""Writes tests/golden/models/qlora: a tiny GGUF of every block type and what peft says of it.

    python tools/make_qlora_golden.py tests/golden/models/qlora

model.gguf is a Llama of two layers whose linears are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (as the gguf
package quantises random weights) and, for rows of 256, Q4_K, Q5_K and Q6_K (random blocks), Q and K
interleaved as llama.cpp has them. golden.safetensors: tokens, positions, labels, cu_seqlens of
packed documents; loss (1), lora.<peft name> and gradient.<peft name> of LoRA in float64 on the
weights that the gguf package decodes. Needs gguf, numpy, torch, transformers, peft and safetensors.
"""

import pathlib
import sys

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

VOCABULARY, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS = 97, 64, 256, 4, 2, 2
HEAD = HIDDEN // HEADS
LENGTHS = [11, 14, 1]
RANK, ALPHA = 4, 6
LINEARS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
           "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
           "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
# Of the first layer and the second; F16 stays plain.
TYPES = {"attn_q": ("Q4_0", "Q8_0"), "attn_k": ("Q4_1", "Q5_0"), "attn_v": ("Q5_0", "F16"),
         "attn_output": ("Q5_1", "Q4_0"), "ffn_gate": ("Q8_0", "Q5_1"),
         "ffn_up": ("Q4_1", "Q4_0"), "ffn_down": ("Q4_K", "Q6_K")}
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where float16 scales lie


def random_blocks(random, kind, rows, columns):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for place in SCALES[kind.name]:
        # Weights of about 1 / sqrt(256): scales of 64 steps of 15, or of 128 of 32.
        scales = random.uniform(1e-4, 2e-4, len(blocks)).astype(np.float16)
        if kind.name == "Q6_K":
            scales = (scales / 10).astype(np.float16)
        blocks[:, place:place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def interleaved(weight, heads):
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(
        weight.shape)


def half_split(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(
        weight.shape)


def write_metadata(writer):
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)


def make(folder):
    random = np.random.default_rng(20261127)
    generator = torch.Generator().manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.double().eval()
    weights = dict(model.named_parameters())
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    write_metadata(writer)

    def plain(name, stored, scale, offset=0.0):
        parameter = weights[name]
        values = (offset + scale * random.normal(0, 1, parameter.shape)).astype(np.float32)
        parameter.data = torch.from_numpy(values).double()
        writer.add_tensor(stored, values)

    plain("model.embed_tokens.weight", "token_embd.weight", 0.3)
    plain("model.norm.weight", "output_norm.weight", 0.3, 1.0)
    for n in range(LAYERS):
        prefix = f"model.layers.{n}."
        plain(prefix + "input_layernorm.weight", f"blk.{n}.attn_norm.weight", 0.3, 1.0)
        plain(prefix + "post_attention_layernorm.weight", f"blk.{n}.ffn_norm.weight", 0.3, 1.0)
        for name, stored in LINEARS.items():
            kind = gguf.GGMLQuantizationType[TYPES[stored][n]]
            parameter = weights[prefix + name + ".weight"]
            rows, columns = parameter.shape
            if kind.name in SCALES:
                blocks = random_blocks(random, kind, rows, columns)
            else:
                values = random.normal(0, 1.2 / columns ** 0.5, (rows, columns))
                blocks = gguf.quants.quantize(values.astype(np.float32), kind)
            writer.add_tensor(f"blk.{n}.{stored}.weight", blocks, raw_dtype=kind)
            decoded = gguf.quants.dequantize(blocks, kind).astype(np.float64)
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stored)
            decoded = half_split(decoded, heads) if heads else decoded
            parameter.data = torch.from_numpy(np.ascontiguousarray(decoded))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    total = sum(LENGTHS)
    labels = torch.randint(VOCABULARY, (total,), generator=generator)
    labels[torch.rand(total, generator=generator) < 0.4] = -100
    labels[LENGTHS[0] - 1] = -100
    batch = {"tokens": torch.randint(VOCABULARY, (total,), generator=generator).int(),
             "positions": torch.cat([torch.arange(n) for n in LENGTHS]).int(),
             "labels": labels.int(), "cu_seqlens": torch.tensor([0] + LENGTHS).cumsum(0).int()}
    golden = dict(batch)
    adapted = peft.get_peft_model(model, peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=[name.split(".")[1] for name in LINEARS])).double()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (noise * 0.8 / parameter.shape[1] ** 0.5).float().double()
    losses = []
    for begin, end in zip(batch["cu_seqlens"][:-1].tolist(), batch["cu_seqlens"][1:].tolist()):
        logits = adapted(batch["tokens"][None, begin:end].long()).logits[0]
        losses.append(torch.nn.functional.cross_entropy(
            logits, batch["labels"][begin:end].long(), reduction="none"))
    loss = torch.cat(losses).sum()
    (loss / (labels >= 0).sum()).backward()
    golden["loss"] = loss.detach()[None].float()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "")
            golden["lora." + name] = parameter.detach().float()
            golden["gradient." + name] = parameter.grad.float()
    save_file({name: tensor.contiguous() for name, tensor in golden.items()},
              folder / "golden.safetensors",
              metadata={"lora_rank": str(RANK), "lora_alpha": str(ALPHA),
                        "lora_targets": ",".join(name.split(".")[1] for name in LINEARS)})
    print("loss", loss.item() / (labels >= 0).sum().item())


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
