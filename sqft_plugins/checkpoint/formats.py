"""The ways in which a folder may store an INT4 weight, one class each, chosen by config.json.

`pack-quantized` (compressed-tensors) is here; AutoGPTQ's is in gptq_folder.py, our compact form in compact_folder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from pydantic import ValidationError

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import (
    MAX_SCALE,
    MIN_SCALE,
    PER_CHANNEL,
    QuantizedWeight,
    group_count,
    packed_words,
    symmetric_zero_point,
    unpack,
    unpack_zero_point,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sqft_plugins.checkpoint.folder import ModelFolder


class Int4Format(Protocol):
    """How INT4 weights stand in a folder. name: for the user. marks: the ends of tensor names that tell an INT4 weight.
    parts: the ends of the names of all its tensors."""

    name: str
    marks: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def grid(self) -> GridStamp:
        """Raises CheckpointError for a grid that is none of ours."""
        ...

    def scales(self, module: str) -> str:
        """The name of the tensor with the scales."""
        ...

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in), without reading the codes."""
        ...

    def quantized(self, module: str) -> QuantizedWeight:
        """Codes, exact scales and zero points. Raises CheckpointError or GridError naming the tensor."""
        ...


def open_format(folder: ModelFolder, config: Mapping[str, Any] | None) -> Int4Format:
    """The format of a folder whose `quantization_config` is `config`. Raises CheckpointError for an unknown one."""
    from sqft_plugins.checkpoint.compact_folder import COMPACT, METHOD, Compact
    from sqft_plugins.checkpoint.gptq_folder import AutoGPTQ

    if config is None:
        return PackQuantized(folder, None)
    method, layout = config.get("quant_method"), config.get("format")
    if (method, layout) == ("compressed-tensors", "pack-quantized"):
        return PackQuantized(folder, config)
    if (method, layout) == (METHOD, COMPACT):
        return Compact(folder, config)
    if method == "gptq":
        return AutoGPTQ(folder, config)
    raise CheckpointError(
        f"model {folder.path} is quantized as {method}/{layout}: this release reads compressed-tensors/pack-quantized, "
        f"gptq and {METHOD}/{COMPACT}"
    )


class PackQuantized:
    """compressed-tensors `pack-quantized`."""

    name = "pack-quantized"
    marks: tuple[str, ...] = (".weight_packed",)
    parts: tuple[str, ...] = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point")

    def __init__(self, folder: ModelFolder, config: Mapping[str, Any] | None):
        self._folder, self._config = folder, config

    @property
    def grid(self) -> GridStamp:
        path = self._folder.path
        if self._config is None:
            raise CheckpointError(
                f"{path}/config.json has no quantization_config but a weight is packed: copy the model again"
            )
        try:
            weights = [group["weights"] for group in self._config["config_groups"].values()]
            first = weights[0]
            kind = (first["num_bits"], first.get("type", "int"), first["strategy"] in ("group", "channel"))
            size = PER_CHANNEL if first["strategy"] == "channel" else first["group_size"]
            if any(w != first for w in weights) or kind != (4, "int", True) or first.get("actorder"):
                raise CheckpointError(
                    f"model {path} mixes grids, is not 4-bit in groups or per channel, or is act-ordered: "
                    "quantize it again with one grid"
                )
            return GridStamp(group_size=size, symmetric=first["symmetric"])
        except (KeyError, TypeError, AttributeError, IndexError, ValidationError) as error:
            raise CheckpointError(
                f"{path}/config.json: quantization_config has no weight groups: copy it again"
            ) from error

    def scales(self, module: str) -> str:
        return f"{module}.weight_scale"

    def shape(self, module: str) -> tuple[int, int]:
        return stored_shape(self._folder, f"{module}.weight_shape")

    def quantized(self, module: str) -> QuantizedWeight:
        folder, grid = self._folder, self.grid
        rows, columns = self.shape(module)
        groups = group_count(columns, grid.group_size, module)
        packed = self._part(module, "weight_packed", (rows, packed_words(columns)))
        scale = self._part(module, "weight_scale", (rows, groups)).to(torch.float32)
        check_scale(scale, f"{folder.files[f'{module}.weight_scale']}: {module}.weight_scale")
        if grid.symmetric:
            zero_point = symmetric_zero_point(scale)
        else:
            zero_point = unpack_zero_point(self._part(module, "weight_zero_point", (packed_words(rows), groups)), rows)
        return QuantizedWeight(unpack(packed, columns), scale, zero_point)

    def _part(self, module: str, part: str, shape: tuple[int, ...]) -> Tensor:
        return expect_shape(self._folder, f"{module}.{part}", shape)


def stored_shape(folder: ModelFolder, name: str) -> tuple[int, int]:
    """(out, in), which the tensor `name` says. Raises CheckpointError where it is missing or has another shape."""
    rows, columns = expect_shape(folder, name, (2,)).tolist()
    return int(rows), int(columns)


def expect_shape(folder: ModelFolder, name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor `name`. Raises CheckpointError where it is missing or has another shape."""
    tensor = folder.tensor(name)
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name} of {folder.files[name]} is {tuple(tensor.shape)}, expected {shape}: copy it again"
        )
    return tensor


def check_scale(scale: Tensor, name: str) -> None:
    """Raises GridError for scales float32 [out, groups] that are not finite or outside 2^-17..65504."""
    size = scale.abs()
    bad = ~((size >= MIN_SCALE) & (size <= MAX_SCALE))  # also catches NaN
    if bool(bad.any()):
        raise GridError(
            f"{name} holds {float(scale[bad][0]):g}, outside the exact range 2^-17..65504: "
            f"copy the model again, or quantize it again with `sqft quantize`"
        )
