"""Times the portable backend beside PyTorch's FlashAttention-2 on a GPU.

Usage: portable.py LIBRARY

Rates in TFLOP/s of visible pairs: forward 4 D a pair and head, backward 2.5 times that. Both run in
the same rounds, in turn; the figure is the median.
"""
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashloom_attention import Attention


def milliseconds(function):
    """Of one call: the mean over 15 ms of calls, after one that warms up."""
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    function()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    calls = max(1, min(50, int(15 / max(start.elapsed_time(end), 1e-3))))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def measure(attention, dtype, dim, causal, length, tokens, rounds):
    heads, batch = 2048 // dim, max(1, tokens // length)
    q, k, v, dout = (torch.randn(batch, length, heads, dim, device="cuda").to(dtype).transpose(1, 2)
                     for _ in range(4))
    out, dq, dk, dv = (torch.empty_like(q) for _ in range(4))
    lse = torch.empty(batch, heads, length, device="cuda")
    common = dict(q=q, k=k, v=v, out=out, lse=lse, right=0 if causal else -1, backend="portable")
    work = 4 * batch * heads * length * length * dim / (2 if causal else 1)
    calls = {"fwd": (attention.prepare("forward", **common), work),
             "bwd": (attention.prepare("backward", dout=dout, dq=dq, dk=dk, dv=dv, **common),
                     2.5 * work)}
    if dtype != torch.float32:
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        result = F.scaled_dot_product_attention(*leaves, is_causal=causal)

        def peer_forward():
            with torch.no_grad():
                F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        calls["fa2 fwd"] = (peer_forward, work)
        calls["fa2 bwd"] = (lambda: torch.autograd.grad(result, leaves, dout, retain_graph=True),
                            2.5 * work)
    rates = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (function, operations) in calls.items():
            rates[name].append(operations / milliseconds(function) / 1e9)
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main():
    attention = Attention(sys.argv[1])
    print(torch.cuda.get_device_name(), torch.__version__)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for dtype, lengths, tokens, rounds in ((torch.bfloat16, (1024, 4096), 16384, 3),
                                               (torch.float32, (2048,), 4096, 2)):
            for dim in (64, 128, 256):
                for causal in (False, True):
                    for length in lengths:
                        print(str(dtype)[6:], dim, "causal" if causal else "full", length,
                              measure(attention, dtype, dim, causal, length, tokens, rounds),
                              flush=True)


if __name__ == "__main__":
    main()
