"""What an export of a float model would be, from the headers of its files alone: `sqft plan` asks before any work.

The layout is that of `gguf_ext.export`: metadata, tensor table, tensors, each aligned to 32 bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from gguf_ext.blocks import BLOCK, TensorType
from gguf_ext.described import Described, describe, file_entries
from gguf_ext.errors import BlockSizeError, GGUFError
from gguf_ext.layout import find_layout
from gguf_ext.parts import aligned
from gguf_ext.write.file import header_bytes
from gguf_ext.write.plan import Planned
from gguf_ext.write.split import ALIGNMENT
from gguf_ext.write.tensors import PlacedTensor
from gguf_ext.write.transcode import STEP_BITS
from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.grid import group_width
from sqft_plugins.identity import while_unchanged


def estimate_gguf(model: str | Path, modules: Collection[str], grid: GridStamp) -> dict[str, Any]:
    """types (name → number of tensors), exact (always: what cannot be exact is refused) and bytes of the file, for a
    float model folder whose `modules` become INT4 on `grid`.

    bytes is at most: an asymmetric layer counts as Q5_0 though it may fit Q4_0, a float32 matrix as F32 though it may
    be exact in 16 bits; and but for some hundred bytes in which `sqft.*` says what was done. Raises GGUFError for
    what cannot be exported.
    """
    folder = ModelFolder(model)
    layout = find_layout(folder)
    planned = [_planned(folder, tensor, set(modules), grid) for tensor in layout.tensors]
    entries = file_entries(folder, planned, layout, Described([], ""))

    head = header_bytes(layout.architecture, entries, planned) + vocabulary_bytes(folder.path)
    size = aligned(head, ALIGNMENT) + sum(aligned(tensor.bytes, ALIGNMENT) for tensor in planned)
    return {"types": dict(Counter(tensor.type.name for tensor in planned)), "exact": True, "bytes": size}


@while_unchanged
def vocabulary_bytes(path: Path) -> int:
    """The tokenizer's metadata in the file; remembered, since reading a large vocabulary takes seconds. Raises
    GGUFError for a tokenizer that llama.cpp lacks."""
    folder = ModelFolder(path)
    entries = describe(folder, None, find_layout(folder), None, None).entries
    return header_bytes("", entries) - header_bytes("", [])


def _planned(folder: ModelFolder, tensor: PlacedTensor, quantized: set[str], grid: GridStamp) -> Planned:
    if tensor.constant is not None:
        return Planned(tensor, TensorType.F32, tuple(tensor.constant.shape))

    spec = folder.spec(tensor.tensor)
    shape, module = spec.shape[::-1] if tensor.transposed else spec.shape, tensor.owner

    if tensor.is_weight and module in quantized:
        width = group_width(shape[-1], grid.group_size, module)
        if width % BLOCK:
            raise BlockSizeError(
                f"{module}: in={shape[-1]} in groups of {width} does not fit blocks of {BLOCK}: "
                "use a group size of 32, 64 or 128, or exclude the layer"
            )
        steps = grid.kind.max_code if not grid.symmetric else grid.kind.symmetric_zero_point
        kind = next((kind for kind, bits in STEP_BITS.items() if steps <= 2 ** (bits - 1)), None)
        if kind is None:
            raise GGUFError(f"{module}: {grid.label} has steps outside -128..127, the range of Q8_0: use bits=4")
        return Planned(tensor, kind, shape)

    half = {torch.float16: TensorType.F16, torch.bfloat16: TensorType.BF16}
    kind = TensorType.F32 if len(spec.shape) == 1 or tensor.add else half.get(spec.dtype, TensorType.F32)
    return Planned(tensor, kind, shape)
