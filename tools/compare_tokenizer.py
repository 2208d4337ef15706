#!/usr/bin/env python3
"""Compares `flashloom tokenize` with Hugging Face, line by line, on a real model.

Usage: compare_tokenizer.py MODEL [TEXT...] [--program build/cpu/bin/flashloom]

MODEL is a Hugging Face directory or a GGUF file, TEXT a file of lines in UTF-8. The adversarial
texts of make_tokenizer_golden.py and random ones are always added. Needs transformers, and gguf for a
GGUF file; transformers, reading one, drops the digit split of `pre = smollm`, which is put back here.
"""
import argparse
import pathlib
import random
import subprocess
import sys

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

import make_tokenizer_golden


def load(model):
    if model.is_dir():
        return AutoTokenizer.from_pretrained(model)
    from gguf import GGUFReader
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    if GGUFReader(model).fields["tokenizer.ggml.pre"].contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def random_texts(count):
    chance = random.Random(1)
    common = "aAsStTlLmMdDrReEvVzZ''..,!?-_<|>0123456789    \t"
    for _ in range(count):
        share = chance.choice((0.0, 0.5, 0.9, 1.0))
        characters = []
        for _ in range(chance.randint(1, 80)):
            c = chance.randrange(0x110000) if chance.random() < 0.5 else chance.randrange(0x3100)
            use_common = chance.random() < share or 0xD800 <= c < 0xE000
            characters.append(chance.choice(common) if use_common else chr(c))
        yield "".join(characters)
    for unit in ("a", "z9", " ", "\u7684", "\u00e9", "!", "e\u0301\u0323", "1"):
        yield unit * 20000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path, nargs="*")
    parser.add_argument("--program", default="build/cpu/bin/flashloom")
    options = parser.parse_args()
    lines = make_tokenizer_golden.texts() + list(random_texts(5000))
    for path in options.texts:
        lines += path.read_text(encoding="utf-8", errors="replace").split("\n")
    # The program reads lines: a text with a line break is several, an empty one says nothing.
    lines = [part for line in lines for part in line.split("\n") if part]
    result = subprocess.run([options.program, "tokenize", "--model", options.model], check=True,
                            input="".join(line + "\n" for line in lines).encode(), capture_output=True)
    found = [[int(i) for i in line.split()] for line in result.stdout.decode().split("\n")[:-1]]
    if len(found) != len(lines):
        sys.exit(f"{len(found)} lines came back, {len(lines)} were given")
    tokenizer = load(options.model)
    expected = tokenizer(lines).input_ids
    different = [i for i in range(len(lines)) if found[i] != expected[i]]
    for i in different[:10]:
        print(f"{lines[i][:200]!r}\n  flashloom    {found[i][:40]}\n  Hugging Face {expected[i][:40]}")
    print(f"{len(lines)} lines, {sum(map(len, expected))} ids, {len(different)} lines differ")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
