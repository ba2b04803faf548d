"""The type of every tensor of the file: decided and checked before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, row_bytes
from gguf_ext.errors import ActOrderError, GGUFError, UnmappedTensorError
from gguf_ext.write.tensors import PlacedTensor
from gguf_ext.write.transcode import (
    block_bytes,
    block_type,
    float_bytes,
    matrix_type,
    rounding_error,
    row_slices,
)
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.stamp import OtherGrid
from sqft_plugins.progress import track

EMBEDDINGS = ("token_embd.weight", "output.weight")
"""The matrices with a row for each token: the embedding, which is the head too where they are tied, and the head."""
FLOAT_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16)


@dataclass(frozen=True)
class Planned:
    """A tensor with its type and shape ([out, in] or [n]). error: the largest |difference| that its type makes."""

    placed: PlacedTensor
    type: TensorType
    shape: tuple[int, ...]
    error: float = 0.0

    @property
    def name(self) -> str:
        return self.placed.name

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows * row_bytes(self.shape[-1], self.type)

    def pieces(self, folder: ModelFolder) -> Iterator[NDArray[np.uint8]]:
        """The raw bytes, [rows, row_bytes] a piece, so that a large embedding needs no second copy in memory."""
        if self.placed.module is not None:
            yield block_bytes(self.placed.quantized(folder), self.type)
            return
        tensor = self.placed.float_weight(folder)
        for rows in row_slices(self.shape):
            yield float_bytes(tensor[rows], self.type)


def plan(
    folder: ModelFolder,
    placed: list[PlacedTensor],
    float_type: str = "auto",
    embedding_type: str = "auto",
    rounding: str = "refuse",
) -> list[Planned]:
    """Reads every tensor once and decides its type. Raises a GGUFError for a tensor that cannot be held as asked for.

    float_type, embedding_type, rounding: as of `gguf_ext.export.Options`.
    """
    planned = []
    for tensor in track(placed, "checking the weights"):
        if tensor.module is not None:
            planned.append(_plan_int4(folder, tensor, rounding))
        elif tensor.name in EMBEDDINGS and embedding_type != "auto":
            planned.append(_plan_float(folder, tensor, embedding_type, "--embedding-type"))
        else:
            planned.append(_plan_float(folder, tensor, float_type, "--float-type"))
    return planned


def shrinkable(planned: list[Planned]) -> str:
    """A line on the embedding that was left in floats beside INT4 layers, where it is much of the file; else ""."""
    floats = [tensor for tensor in planned if tensor.name in EMBEDDINGS and tensor.type in FLOAT_TYPES]
    wide = [tensor for tensor in floats if tensor.shape[-1] % 32 == 0]
    if not wide or all(tensor.placed.module is None for tensor in planned):
        return ""
    whole, now = sum(tensor.bytes for tensor in planned), sum(tensor.bytes for tensor in wide)
    then = sum(tensor.shape[0] * row_bytes(tensor.shape[-1], TensorType.Q8_0) for tensor in wide)
    if now < whole / 4:
        return ""
    return (
        f"{' and '.join(tensor.name for tensor in wide)} ({wide[0].type.name}) takes {now:,} of {whole:,} bytes: "
        f"--embedding-type q8_0 rounds it to 8 bits, {whole - now + then:,} bytes in all"
    )


def _plan_int4(folder: ModelFolder, tensor: PlacedTensor, rounding: str) -> Planned:
    weight = tensor.quantized(folder)
    kind = block_type(weight, tensor.tensor, rounding)
    error = rounding_error(weight, kind) if rounding == "allow" else 0.0
    return Planned(tensor, kind, tuple(weight.codes.shape), error)


def _plan_float(folder: ModelFolder, tensor: PlacedTensor, wanted: str, argument: str) -> Planned:
    """wanted: the type that `argument` asks for."""
    label = tensor.tensor or tensor.name
    weight = tensor.float_weight(folder)
    if not weight.numel():
        raise UnmappedTensorError(f"{label} of model {folder.path} is empty, which no file holds: export another")

    kind = TensorType.F32 if tensor.constant is not None else matrix_type(weight, label, wanted, argument)
    error = 0.0 if wanted == "auto" else rounding_error(weight, kind)
    return Planned(tensor, kind, tuple(weight.shape), error)


def check_order(folder: ModelFolder) -> None:
    """Raises ActOrderError for weights in act-order, whose groups are no neighbours, and GGUFError for another grid
    that no type of the export holds."""
    if isinstance(folder.grid, OtherGrid):
        error = ActOrderError if folder.grid.kind.is_integer else GGUFError
        raise error(
            f"model {folder.path} is {folder.grid.label}, and the export has types for integers in groups of "
            "neighbours: quantize the float model (`sqft quantize --grid q4_0`)"
        )
