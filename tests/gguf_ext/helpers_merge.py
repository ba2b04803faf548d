"""GGUF files of every type, made of random blocks, and a reader of bytes that shares no line with ours."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from gguf_ext.blocks import TensorType
from gguf_ext.blocks.proof import random_blocks

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF value type → bytes."""
GRIDS = [TensorType[name] for name in ("Q4_K", "Q6_K", "Q4_0", "Q8_0", "IQ4_NL", "Q3_K", "Q5_1", "MXFP4")]
ROWS, COLUMNS = 6, 512


def write_file(path: Path, alignment: int | None = 64, entries: int = 3, **options) -> Path:
    """One matrix [6, 512] of each of GRIDS, called after its type, a codebook and two float tensors. options: of
    GGUFWriter, to split it; then `path` names no file, but its parts are beside it."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama", **options)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "Naïve ✓")
    writer.add_bool("a.bool", True)
    writer.add_float32("a.float", 0.1)
    writer.add_array("an.array", ["one", "", "drei"])
    writer.add_key_value("ints", [1, -2], GGUFValueType.ARRAY, sub_type=GGUFValueType.INT8)
    for index in range(entries):
        writer.add_uint64(f"more.{index}", 2**60 + index)

    writer.add_tensor("first.norm", generator.standard_normal(7).astype(np.float32))
    for kind in GRIDS:
        blocks = random_blocks(kind, 4096, generator)[1000:]  # the first have special scales
        width = COLUMNS // {32: 32, 256: 256}[256 if "_K" in kind.name else 32] * blocks.shape[1]
        raw = blocks.reshape(-1)[: ROWS * width].reshape(ROWS, width)
        writer.add_tensor(kind.name, raw, raw_dtype=GGMLQuantizationType(int(kind)))
    book = generator.integers(0, 256, (ROWS, 132), np.uint8)
    writer.add_tensor("codebook", book, raw_dtype=GGMLQuantizationType.IQ2_XXS)
    writer.add_tensor("last.norm", generator.standard_normal(5).astype(np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass
class Walked:
    """A file, cut into its bytes.

    entries: key → the bytes of its value, with the type. table: the bytes of the table of tensors.
    tensors: name → (type, shape as it stands, offset from `start`). start: of the first tensor.
    data: everything from there.
    """

    version: int
    entries: dict[str, bytes]
    table: bytes
    tensors: dict[str, tuple[int, tuple[int, ...], int]]
    start: int
    data: bytes


def walk(path: Path) -> Walked:
    """Reads a GGUF file by its specification alone."""
    whole = Path(path).read_bytes()
    assert whole[:4] == b"GGUF"
    version, tensors, entries = struct.unpack_from("<IQQ", whole, 4)
    at = 24

    def string() -> str:
        nonlocal at
        (size,) = struct.unpack_from("<Q", whole, at)
        at += 8 + size
        return whole[at - size : at].decode()

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            string()
        elif kind == 9:
            item, count = struct.unpack_from("<IQ", whole, at)
            at += 12
            for _ in range(count):
                skip(item)
        else:
            at += SIZES[kind]

    found: dict[str, bytes] = {}
    for _ in range(entries):
        key, begin = string(), at
        assert key not in found
        (kind,) = struct.unpack_from("<I", whole, at)
        at += 4
        skip(kind)
        found[key] = whole[begin:at]

    begin, places = at, {}
    for _ in range(tensors):
        name = string()
        (dimensions,) = struct.unpack_from("<I", whole, at)
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", whole, at + 4)
        at += 4 + 8 * dimensions + 12
        places[name] = (kind, tuple(shape), offset)
    alignment = struct.unpack("<I", found["general.alignment"][4:])[0] if "general.alignment" in found else 32
    start = -(-at // alignment) * alignment
    assert not any(whole[at:start])
    return Walked(version, found, whole[begin:at], places, start, whole[start:])
