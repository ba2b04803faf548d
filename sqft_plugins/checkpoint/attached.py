"""The INT4 grid that stays on a linear layer whose codes were dequantized into a float weight when it was loaded.

`load_model` leaves it; so did transformers with `CompressedTensorsConfig(dequantize=True)`, until 5.24. Who needs the
codes of such a model, to export or to pack it, reads them back here. Where a model may be one of transformers' own,
`restore_grids` (restore.py) comes first.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import GridError
from sqft_plugins.grid import INT4, PER_CHANNEL, Grid, GridKind, QuantizedWeight, symmetric_zero_point
from sqft_plugins.structure import weight_of

SCALE, SHAPE, ZERO_POINT = "weight_scale", "weight_shape", "weight_zero_point"


def attach_grid(layer: nn.Module, grid: GridStamp, scale: Tensor, zero_point: Tensor) -> None:
    """Leaves on a linear layer, as buffers that are not saved, what transformers before 5.24 left as parameters:
    `weight_scale` [out, groups], `weight_shape` int64 [2] (out, in) and, where the grid is asymmetric,
    `weight_zero_point` int8 [out, groups] (signed: ours - 8); and `quantization_scheme` and `quantization_status`.

    The scale has the weight's dtype where that holds it exactly, else float32: AutoGPTQ's do not fit bf16.
    """
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    from sqft_plugins.checkpoint.int4 import quantization_config

    weight: Tensor = layer.get_parameter("weight")
    narrow, rows = scale.to(weight.dtype), scale.shape[0]
    parts = {
        SCALE: narrow if torch.equal(narrow.to(scale.dtype), scale) else scale,
        SHAPE: torch.tensor([rows, weight.numel() // rows]),
    }
    if not grid.symmetric:
        parts[ZERO_POINT] = signed(zero_point, grid.kind)
    for name, part in parts.items():
        layer.register_buffer(name, part.to(weight.device), persistent=False)
    (scheme,) = QuantizationConfig(**quantization_config(grid, ())).config_groups.values()
    vars(layer).update(quantization_scheme=scheme, quantization_status=QuantizationStatus.DECOMPRESSED)


def mark_codes(layer: nn.Module) -> None:
    """Leaves on a linear layer that its weight is dequantized codes, of a grid that is only in the folder."""
    from compressed_tensors.quantization import QuantizationStatus

    vars(layer)["quantization_status"] = QuantizationStatus.DECOMPRESSED


def has_grid(layer: nn.Module) -> bool:
    """Whether a layer has a float weight and a grid."""
    return hasattr(layer, SCALE) and hasattr(layer, "weight")


def attached_grid(layer: nn.Module) -> GridStamp:
    """The grid of a layer that `has_grid`. It does not follow from the scales alone: one group in a row is a group of
    size `in`, too."""
    weights = cast(Any, layer).quantization_scheme.weights
    size = PER_CHANNEL if weights.strategy == "channel" else weights.group_size
    return GridStamp(bits=weights.num_bits, group_size=size, symmetric=not hasattr(layer, ZERO_POINT))


def attached_weight(layer: nn.Module) -> tuple[QuantizedWeight, int]:
    """The codes nearest to the layer's weight on its grid, on the CPU, and how many weights are not exactly these
    codes, in the weight's dtype (an adapter was merged into it). Raises GridError for a grid of another shape."""
    weight = weight_of(layer).detach().cpu()  # type: ignore[arg-type]  # [out, in]
    scale = cast(Tensor, getattr(layer, SCALE)).detach().cpu().to(torch.float32)
    kind = attached_grid(layer).kind
    zero_point = symmetric_zero_point(scale, kind)
    if hasattr(layer, ZERO_POINT):
        zero_point = unsigned(cast(Tensor, getattr(layer, ZERO_POINT)).detach().cpu(), kind)
    fits = scale.dim() == 2 and len(scale) == len(weight) and not weight.shape[1] % max(scale.shape[1], 1)
    if not fits or scale.shape != zero_point.shape:
        raise GridError(
            f"{SCALE} {tuple(scale.shape)} is no grid of a weight {tuple(weight.shape)}: load the INT4 folder again"
        )
    own = Grid(kind, scale, zero_point)
    found = QuantizedWeight(own.quantize(weight), own)
    return found, int(torch.count_nonzero(found.dequantize(weight.dtype) != weight))


def signed(zero_point: Tensor, kind: GridKind = INT4) -> Tensor:
    """uint8, of INT4 0..15 → int8, -8..7, as compressed-tensors has it on a layer."""
    return (zero_point.to(torch.int16) - kind.symmetric_zero_point).to(torch.int8)


def unsigned(zero_point: Tensor, kind: GridKind = INT4) -> Tensor:
    """The inverse of `signed`, of any integer dtype."""
    return (zero_point.to(torch.int16) + kind.symmetric_zero_point).to(torch.uint8)
