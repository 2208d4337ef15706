#!/usr/bin/env python3
"""Writes seeds for the fuzz targets, small files that each reader accepts: make_seeds.py FOLDER.

They are made from the golden files of the tests, so nothing is kept twice.
"""
import json
import math
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def safetensors(tensors, metadata=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def gguf(metadata, tensors):
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def typed(value):
        if isinstance(value, bool):
            return struct.pack("<IB", 7, value)
        if isinstance(value, int):
            return struct.pack("<II", 4, value)
        if isinstance(value, float):
            return struct.pack("<If", 6, value)
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if value and isinstance(value[0], int):
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += text(key) + typed(value)
    data = b""
    for name, (shape, kind, content) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        out += struct.pack("<IQ", kind, len(data))
        data += content
    return out + b"\0" * (-len(out) % 32) + data


def model_gguf(architecture):
    """A whole model of one layer with eight channels."""
    def floats(*shape):
        return shape, 0, struct.pack("<f", 0.5) * math.prod(shape)

    a = architecture
    metadata = {"general.architecture": a, f"{a}.block_count": 1, f"{a}.embedding_length": 8,
                f"{a}.feed_forward_length": 16, f"{a}.attention.head_count": 2,
                f"{a}.attention.head_count_kv": 1, f"{a}.context_length": 64,
                f"{a}.attention.layer_norm_rms_epsilon": 1e-5, f"{a}.rope.freq_base": 10000.0,
                "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab"],
                "tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.merges": ["a b"],
                "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.add_bos_token": False}
    tensors = {"token_embd.weight": floats(4, 8), "output_norm.weight": floats(8),
               "blk.0.attn_norm.weight": floats(8), "blk.0.ffn_norm.weight": floats(8),
               "blk.0.attn_q.weight": floats(8, 8), "blk.0.attn_k.weight": floats(4, 8),
               "blk.0.attn_v.weight": floats(4, 8), "blk.0.attn_output.weight": floats(8, 8),
               "blk.0.ffn_gate.weight": floats(16, 8), "blk.0.ffn_up.weight": floats(16, 8),
               "blk.0.ffn_down.weight": floats(8, 16)}
    return gguf(metadata, tensors)


def seeds():
    four = struct.pack("<4f", 1, 2, 3, 4)
    yield "safetensors", safetensors({"m": ("F32", [4], four)})
    yield "safetensors", safetensors({"a": ("BF16", [2, 2], four[:8]), "b": ("F16", [0], b"")},
                                     {"format": "pt"})
    yield "safetensors", (GOLDEN / "io/gguf_types.safetensors").read_bytes()[:4096]
    for architecture in ("llama", "qwen2", "qwen3"):
        yield "gguf", model_gguf(architecture)
    yield "gguf", (GOLDEN / "io/gguf_types.gguf").read_bytes()

    options = json.loads((GOLDEN / "text/tokenizer_options.json").read_text())
    tokenizer = options["base"]
    vocabulary = tokenizer["model"]["vocab"]
    kept = dict(sorted(vocabulary.items(), key=lambda item: item[1])[:260])
    tokenizer["model"]["vocab"] = kept
    pairs = [merge if isinstance(merge, list) else merge.split(" ")
             for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = [
        f"{left} {right}" for left, right in pairs
        if left in kept and right in kept and left + right in kept]
    yield "tokenizer", json.dumps(tokenizer).encode()
    for name in ("gpt2", "llama3", "qwen2", "smollm2"):
        whole = json.loads((GOLDEN / f"text/tokenizer_{name}.json").read_text())
        whole["model"] = tokenizer["model"]
        whole["added_tokens"] = whole.get("added_tokens", [])[:2]
        yield "tokenizer", json.dumps(whole, ensure_ascii=False).encode()

    for path in sorted((GOLDEN / "text/templates").glob("*.jinja")):
        yield "chat_template", path.read_bytes()
    yield "chat_template", (b"{% macro f(x, y=1) %}{{ x|upper ~ y }}{% endmacro %}{% set ns = "
                            b"namespace(n=0) %}{% for m in messages[::-1] if m.role != 'system' %}"
                            b"{% set ns.n = ns.n + loop.index0 // 2 %}{{ f(m.content[1:3]) }}"
                            b"{% else %}none{% endfor %}{{ tools | tojson(indent=2) }}{{ ns.n ** 2 "
                            b"% 3 }}{{ raise_exception('no') if false else strftime_now('%Y') }}")

    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
             "tools": [{"name": "add"}]},
            {"prompt": "1 + 1 =", "completion": " 2"}, {"text": "plain \u00e9\ud55c"},
            {"instruction": "Say it", "input": "now", "output": "it"},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    for row in rows:
        yield "jsonl", json.dumps(row).encode()
    yield "jsonl", b"\xef\xbb\xbf" + "\r\n".join(
        json.dumps(row, ensure_ascii=False) for row in rows).encode() + b"\n\n"

    yield "toml", (b'truth = true\nwhole = 3 # three\nnumber = 1e-4\ntext = "one"\n'
                   b'list = ["a", \'b\']\nperhaps-whole = 0x10\nperhaps-number = inf\n'
                   b'perhaps-text = """two\nlines"""\n')
    yield "toml", b'[table]\nlist = [{a = 1979-05-27T07:32:00Z}]\n'
    yield "toml", b'list = ["x"]\nunknown = 1\n'

    state = {"step": 3, "epoch": 0, "bin": 7, "tokens": 99, "seconds": 1.5, "best_step": 2,
             "before": {"loss": 2.0, "tokens": 3, "all_tokens": 4},
             "best": {"loss": 1.0, "tokens": 3, "all_tokens": 4}}
    tensors = safetensors({"m": ("F32", [4], four)})
    yield "checkpoint", b"+" + json.dumps(state).encode() + b"\0" + tensors
    yield "checkpoint", json.dumps({"settings": {"seed": 1, "model": "x"}, "bin_capacity": 8,
                                    "bins_per_step": 1}).encode() + b"\0" + tensors
    yield "checkpoint", b'{"step": 1, "loss": 2.5}\n{"step": 9}\n{"st' + b"\0" + tensors


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    counts = {}
    for name, content in seeds():
        counts[name] = counts.get(name, 0) + 1
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"seed-{counts[name]}").write_bytes(content)
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
