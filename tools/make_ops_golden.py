#!/usr/bin/env python3
"""Writes tests/golden/ops: numbers of PyTorch and transformers that the ops must reproduce.

Every number is a hexadecimal float, so that nothing is lost. Needs torch and transformers.
"""
import pathlib

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "ops"


def numbers(tensor: torch.Tensor) -> str:
    return " ".join(float(x).hex() for x in tensor.flatten())


def rope_config(base: float, head_dim: int, scaling: dict):
    return transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_theta=base,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": base, "rope_type": "default", **scaling})


def rope_frequencies() -> str:
    """Lines: base head_dim scaling factor low high original | frequencies."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    linear = {"rope_type": "linear", "factor": 2.5}
    lines = []
    for base, head_dim, scaling in [(1e4, 64, {}), (1e5, 64, {}), (1e6, 128, {}), (1e4, 96, {}),
                                    (1e4, 64, linear), (5e5, 128, llama3), (5e5, 64, llama3)]:
        config = rope_config(base, head_dim, scaling)
        kind = scaling.get("rope_type", "none")
        if kind == "none":
            inverse = 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))
        else:
            inverse, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        low, high = scaling.get("low_freq_factor", 1), scaling.get("high_freq_factor", 4)
        original = scaling.get("original_max_position_embeddings", 8192)
        lines.append(f"{base} {head_dim} {kind} {scaling.get('factor', 1)} {low} {high} "
                     f"{original} {numbers(inverse)}")
    return "\n".join(lines) + "\n"


def adamw() -> str:
    """Two runs of torch.optim.AdamW (foreach off). Lines: steps size; learning rate, weight decay;
    the first parameter; then for each step the gradient, and after it m, v and the parameter."""
    torch.manual_seed(0)
    lines = []
    for weight_decay, learning_rate in [(0.0, 2e-4), (0.1, 1e-2)]:
        steps, size = 4, 19
        parameter = torch.nn.Parameter(torch.randn(size))
        optimizer = torch.optim.AdamW([parameter], lr=learning_rate, betas=(0.9, 0.999), eps=1e-8,
                                      weight_decay=weight_decay, foreach=False, fused=False)
        lines += [f"{steps} {size}", f"{learning_rate} {weight_decay}", numbers(parameter.data)]
        for _ in range(steps):
            gradient = torch.randn(size) * torch.exp(3 * torch.randn(size))
            parameter.grad = gradient.clone()
            optimizer.step()
            state = optimizer.state[parameter]
            lines += [numbers(gradient), numbers(state["exp_avg"]), numbers(state["exp_avg_sq"]),
                      numbers(parameter.data)]
    return "\n".join(lines) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "rope_frequencies.txt").write_text(rope_frequencies())
    (FOLDER / "adamw.txt").write_text(adamw())


if __name__ == "__main__":
    main()
