#!/usr/bin/env python3
"""Writes flashloom/text/unicode_ranges.inc: what Hugging Face `tokenizers` thinks of each code point.

Usage: make_unicode_ranges.py > flashloom/text/unicode_ranges.inc   (needs tokenizers, libutf8proc 2.8)

Equal ids need equal classes, and `tokenizers` mixes three versions of Unicode: its regular
expressions (letters, numbers, spaces) know 16, its Digits pre-tokenizer 17, its NFC one older than 13.
So the classes are read off its behaviour, one code point at a time.
"""
import ctypes
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

LETTER, NUMBER, SPACE, DIGIT, COMBINES, OPAQUE = 1, 2, 4, 8, 16, 32
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
NFC = normalizers.NFC().normalize_str


def matches(pattern):
    """Code points that a one-character class matches."""
    keep = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found = set()
    for first in range(0, len(CODE_POINTS), 4096):
        text = "".join(map(chr, CODE_POINTS[first:first + 4096]))
        found.update(ord(c) for piece, _ in keep.pre_tokenize_str(text) for c in piece)
    return found


def digits():
    """Code points that Digits(individual_digits=True) sets apart."""
    split = pre_tokenizers.Digits(individual_digits=True)
    return {c for c in CODE_POINTS if len(split.pre_tokenize_str("a" + chr(c))) == 2}


def has_combining_class(c):
    """Marks of class 1 and 240 on either side: one of them changes places with any other class."""
    above, below = "q\u0345" + chr(c), "q" + chr(c) + "\u0334"
    return c in (0x334, 0x345) or NFC(above) != above or NFC(below) != below


def utf8proc_combining():
    """Code points to which the library that normalises for us gives a combining class."""

    class Property(ctypes.Structure):
        _fields_ = [("category", ctypes.c_int16), ("combining_class", ctypes.c_int16)]

    library = ctypes.CDLL("libutf8proc.so.2")
    library.utf8proc_get_property.restype = ctypes.POINTER(Property)
    return {c for c in CODE_POINTS if library.utf8proc_get_property(c).contents.combining_class}


def main():
    classes = dict.fromkeys(CODE_POINTS, 0)

    def mark(found, bit):
        for c in found:
            classes[c] |= bit

    mark(matches(r"\p{L}"), LETTER)
    mark(matches(r"\p{N}"), NUMBER)
    mark(matches(r"\s"), SPACE)
    mark(digits(), DIGIT)

    combining = {c for c in CODE_POINTS if has_combining_class(c)}
    changing = {c for c in CODE_POINTS if NFC(chr(c)) != chr(c)}
    seconds, newer = set(), set()
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and parts[0][0] != "<" and unicodedata.normalize("NFC", chr(c)) == chr(c):
            second = int(parts[1], 16)
            pair = chr(int(parts[0], 16)) + chr(second)
            (seconds if NFC(pair) == chr(c) else newer).add(second)
    jamo = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    mark(combining | changing | seconds | jamo, COMBINES)
    # utf8proc 2.8 (Unicode 15) gives these a combining class or a composition; here they stand alone.
    later = utf8proc_combining() - combining
    mark(later | (newer - combining - seconds), OPAQUE)

    print(f"// Written by tools/make_unicode_ranges.py with tokenizers {tokenizers.__version__}.")
    print("// {first code point, last code point, bits of CodePointClass}")
    start = None
    for c in range(0x110001):
        value = classes.get(c, 0)
        if start is not None and value != start[1]:
            if start[1]:
                print("{0x%X, 0x%X, %d}," % (start[0], c - 1, start[1]))
            start = None
        if start is None:
            start = (c, value)
    print(f"{len(combining)} combining, {len(changing)} changing, {len(seconds)} seconds, "
          f"{len(later)} later, newer {[hex(c) for c in newer]}", file=sys.stderr)


if __name__ == "__main__":
    main()
