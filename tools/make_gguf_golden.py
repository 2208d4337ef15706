"""Writes tests/golden/io/gguf_types.gguf and, beside it, the float32 values that it stands for.

One tensor of three rows of 256 for every type that Flashloom decodes, and metadata of every kind.
Types that the gguf package can quantise hold normal numbers; the K types, which it only decodes,
hold random bytes with finite scales, so that every bit of every field counts. The values are
gguf.quants.dequantize's. Needs: gguf, numpy, safetensors.
"""

import pathlib

import gguf
import numpy as np
import safetensors.numpy

ROWS, COLUMNS = 3, 256
FOLDER = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "io"

# Where the float16 scales of a block lie.
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
QUANTISED = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def random_blocks(random, kind):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    for place in SCALES[kind.name]:
        scales = random.normal(0, 0.1, len(blocks)).astype(np.float16)
        scales[0] = np.float16(3e-7)  # subnormal
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def add_metadata(writer):
    writer.add_uint8("kinds.u8", 200)
    writer.add_int8("kinds.i8", -100)
    writer.add_uint16("kinds.u16", 60000)
    writer.add_int16("kinds.i16", -30000)
    writer.add_uint32("kinds.u32", 4000000000)
    writer.add_int32("kinds.i32", -2000000000)
    writer.add_float32("kinds.f32", 1e-5)
    writer.add_bool("kinds.bool", True)
    writer.add_string("kinds.string", "weiß ☃")
    writer.add_uint64("kinds.u64", 10**19)
    writer.add_int64("kinds.i64", -(10**18))
    writer.add_float64("kinds.f64", 0.1)
    writer.add_array("kinds.strings", ["a", "", "ß"])
    writer.add_array("kinds.integers", [1, -2, 3])
    writer.add_array("kinds.floats", [0.5, 1.5])


def main():
    random = np.random.default_rng(20260101)
    writer = gguf.GGUFWriter(FOLDER / "gguf_types.gguf", "golden")
    add_metadata(writer)
    expected = {}

    def add(kind, stored):
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(stored, kind)

    values = random.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    values[1, :32] = 0  # blocks of zeros
    values[2] *= 1e-3
    add(gguf.GGMLQuantizationType.F32, values)
    for name in QUANTISED:
        kind = gguf.GGMLQuantizationType[name]
        add(kind, gguf.quants.quantize(values, kind))
    for name in SCALES:
        kind = gguf.GGMLQuantizationType[name]
        add(kind, random_blocks(random, kind))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array, np.float32) for name, array in expected.items()},
        FOLDER / "gguf_types.safetensors",
    )


if __name__ == "__main__":
    main()
