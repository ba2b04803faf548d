"""Raw rows of a tensor ↔ codes and frozen numbers, for every type that is a grid."""

from __future__ import annotations

import numpy as np
import torch

from gguf_ext.blocks import k_quants, simple, tables
from gguf_ext.blocks.layout import BlockLayout, Floats
from gguf_ext.blocks.planes import Bytes, read_planes, write_planes
from gguf_ext.blocks.types import BLOCKS, TensorType, row_bytes
from gguf_ext.errors import GGUFError
from sqft_plugins.grid import Grid, GridKind, QuantizedWeight

LAYOUTS: dict[TensorType, BlockLayout] = {
    TensorType.Q4_0: simple.Q4_0,
    TensorType.Q4_1: simple.Q4_1,
    TensorType.Q5_0: simple.Q5_0,
    TensorType.Q5_1: simple.Q5_1,
    TensorType.Q8_0: simple.Q8_0,
    TensorType.Q2_K: k_quants.Q2_K,
    TensorType.Q3_K: k_quants.Q3_K,
    TensorType.Q4_K: k_quants.Q4_K,
    TensorType.Q5_K: k_quants.Q5_K,
    TensorType.Q6_K: k_quants.Q6_K,
    TensorType.IQ4_NL: tables.IQ4_NL,
    TensorType.IQ4_XS: tables.IQ4_XS,
    TensorType.MXFP4: tables.MXFP4,
    TensorType.NVFP4: tables.NVFP4,
}


def grid_kind(kind: TensorType) -> GridKind:
    """What the codes of a type are. Raises KeyError for a type without codes."""
    return _KINDS[kind]


def codes_of(raw: Bytes, kind: TensorType) -> Bytes:
    """Raw rows uint8 [rows, row_bytes] → codes uint8 [rows, in]."""
    layout = LAYOUTS[kind]
    codes = read_planes(_blocks(raw, kind), layout.planes)
    if layout.signed:
        codes = codes ^ np.uint8(128)
    return codes.reshape(len(raw), -1)


def grid_of(raw: Bytes, kind: TensorType) -> Grid:
    """The frozen numbers of raw rows uint8 [rows, row_bytes], with effective scales float32 [rows, groups]."""
    layout, rows = LAYOUTS[kind], len(raw)
    with np.errstate(invalid="ignore"):  # an infinite scale times 0, as ggml multiplies it
        numbers = layout.numbers(_blocks(raw, kind))
    scale = torch.from_numpy(numbers.scale.reshape(rows, -1))
    zero_point = None if layout.zero_point is None else torch.full_like(scale, layout.zero_point, dtype=torch.uint8)
    offset = None if numbers.offset is None else torch.from_numpy(numbers.offset.reshape(rows, -1))
    return Grid(grid_kind(kind), scale, zero_point, offset)


def unpack(raw: Bytes, kind: TensorType) -> QuantizedWeight:
    """Codes and grid of raw rows uint8 [rows, row_bytes]. Raises KeyError for a type without codes."""
    return QuantizedWeight(torch.from_numpy(codes_of(raw, kind)), grid_of(raw, kind))


def replace_codes(raw: Bytes, codes: Bytes, kind: TensorType) -> Bytes:
    """Raw rows with other codes uint8 [rows, in] → uint8 [rows, row_bytes], in which every byte that is no code is as
    it was. Raises GGUFError for codes that are not of this shape or too large for the type."""
    layout = LAYOUTS[kind]
    if codes.shape[0] != len(raw) or row_bytes(codes.shape[1], kind) != raw.shape[1]:
        raise GGUFError(
            f"codes of shape {tuple(codes.shape)} do not fit {len(raw)} rows of {raw.shape[1]} bytes of {kind.name}: "
            "give one code for each weight"
        )
    if codes.size and int(codes.max()) >= 2**layout.bits:
        raise GGUFError(f"code={int(codes.max())} is too large for {kind.name}: use 0..{2**layout.bits - 1}")

    blocks = _blocks(raw, kind).copy()
    stored = codes ^ np.uint8(128) if layout.signed else codes
    write_planes(blocks, stored.reshape(len(blocks), -1), layout.planes)
    return blocks.reshape(raw.shape)


def dequantize(raw: Bytes, kind: TensorType) -> Floats:
    """Raw rows of any TensorType, uint8 [rows, row_bytes] → float32 [rows, in], as llama.cpp computes them."""
    if kind.is_block:
        weights: Floats = unpack(raw, kind).dequantize().numpy()
        return weights
    raw = np.ascontiguousarray(raw)
    if kind is TensorType.F32:
        return raw.view("<f4").astype(np.float32)
    if kind is TensorType.F16:
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of fp32


def _blocks(raw: Bytes, kind: TensorType) -> Bytes:
    """Raw rows uint8 [rows, row_bytes] → the bytes of each block uint8 [n, bytes]."""
    return np.ascontiguousarray(raw).reshape(-1, BLOCKS[kind][1])


_NAMES = {TensorType.MXFP4: "gguf_mxfp4", TensorType.NVFP4: "gguf_nvfp4"}
"""The names of kinds that are not those of their types: ggml's e2m1 has no -0, that of others has."""


def _kind(name: str, layout: BlockLayout) -> GridKind:
    levels = None if layout.table is None else tuple(map(float, layout.table))
    return GridKind(name, layout.bits, levels, affine=layout.affine, group_size=layout.group)


_KINDS = {kind: _kind(_NAMES.get(kind, kind.name.lower()), layout) for kind, layout in LAYOUTS.items()}
