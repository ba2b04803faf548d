"""What a storage format of quantized weights must answer, and the checks that the formats share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.checkpoint.tensors import TensorFiles
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import MAX_SCALE, MIN_SCALE, QuantizedWeight


class Int4Format:
    """The quantized weights of one folder (`ModelFolder.int4`), named after the first kind that there was. A format
    defines the class variables, `grid`, `shape` and `weight`, and `packed_codes` where it has a `codes_end`.

    name: for messages. declared: quant_method/format as config.json has them. marks: the ends of the tensor names by
    which an INT4 weight is recognised. endings: the ends of the names of all tensors of an INT4 weight. scale_end,
    codes_end: of these, that of the scales, and that of the codes; None where codes cannot be changed alone. bitmask:
    the end of the name of a mask that lies beside its weight. prefix: of the names of the weight files. single:
    patterns of other names that a single weight file may have.
    """

    name: ClassVar[str]
    declared: ClassVar[str]
    marks: ClassVar[tuple[str, ...]] = ()
    endings: ClassVar[tuple[str, ...]] = ()
    scale_end: ClassVar[str] = ""
    codes_end: ClassVar[str | None] = None
    bitmask: ClassVar[str | None] = None
    prefix: ClassVar[str] = ""
    single: ClassVar[str | None] = None

    def __init__(self, tensors: TensorFiles, settings: Mapping[str, Any] | None):
        self._tensors, self._settings = tensors, settings or {}

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The complete quantization settings where the folder `path` is in this format, else None.

        config: `quantization_config` of config.json, None where it has none.
        """
        if config is None or f"{config.get('quant_method')}/{config.get('format')}" != cls.declared:
            return None
        return dict(config)

    @property
    def grid(self) -> GridStamp:
        """Raises CheckpointError for a grid that this project does not have: other bits, act-order, mixed grids."""
        raise NotImplementedError

    @cached_property
    def modules(self) -> list[str]:
        """The modules that are stored as INT4, in name order."""
        return sorted(
            name.removesuffix(mark) for name in self._tensors.files for mark in self.marks if name.endswith(mark)
        )

    def __contains__(self, module: str) -> bool:
        return module in self._known

    def parts(self, module: str) -> list[str]:
        """The names of the tensors in which an INT4 weight is stored."""
        return [f"{module}{end}" for end in self.endings if f"{module}{end}" in self._tensors.files]

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in), without reading the codes."""
        raise NotImplementedError

    def scale_name(self, module: str) -> str:
        """The name of the tensor with the scales."""
        return f"{module}{self.scale_end}"

    def scale_spec(self, module: str) -> TensorSpec:
        """How the scales are stored: a folder made from this one keeps them exactly in that dtype."""
        return self._tensors.spec(self.scale_name(module))

    def check_recodable(self) -> None:
        """Raises CheckpointError for a folder whose codes cannot be changed alone, as a merge into it does."""
        if self.codes_end is None:
            raise CheckpointError(
                f"model {self._tensors.path} is {self.name}, in which codes cannot be changed alone: expand a compact "
                "folder with `sqft compact --expand`, or make one with `sqft quantize`"
            )
        _ = self.grid  # what is not read is refused there

    def codes_name(self, module: str) -> str:
        """The name of the tensor with the codes."""
        return f"{module}{self.codes_end}"

    def packed_codes(self, codes: Tensor) -> Tensor:
        """Codes uint8 [out, in] as that tensor holds them."""
        raise NotImplementedError

    def weight(self, module: str) -> QuantizedWeight:
        """Codes, exact scales and zero points. Raises CheckpointError or GridError naming the tensor."""
        raise NotImplementedError

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.modules)


def stored_shape(tensors: TensorFiles, name: str) -> tuple[int, int]:
    """(out, in), which the tensor `name` holds. Raises CheckpointError for a tensor that is missing or damaged."""
    rows, columns = expect_shape(tensors, name, (2,)).tolist()
    return int(rows), int(columns)


def expect_shape(tensors: TensorFiles, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """The tensor `name`. Raises CheckpointError for a tensor that is missing or has another shape, or another dtype
    than `dtype`."""
    tensor = tensors.tensor(name)
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name} of {tensors.files[name]} is {tuple(tensor.shape)}, expected {shape}: copy it again"
        )
    if dtype is not None and tensor.dtype != dtype:
        raise CheckpointError(f"{name} of {tensors.files[name]} is {tensor.dtype}, expected {dtype}: copy it again")
    return tensor


def expect_finite(tensors: TensorFiles, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """The scales `name` of a folder of others, in float32, which holds them exactly. Raises CheckpointError as
    `expect_shape` does, and GridError for NaN and infinity."""
    scale = expect_shape(tensors, name, shape, dtype).float()
    if not bool(torch.isfinite(scale).all()):
        raise GridError(f"{tensors.files[name]}: {name} holds NaN or infinity: copy the model again")
    return scale


def expect_order(tensors: TensorFiles, name: str, columns: int, groups: int) -> Tensor | None:
    """`Grid.column_group`, int64 [in], of the tensor `name`, which has the group of each column. None where groups are
    neighbours in order, or all is 0, which was never filled in. Raises CheckpointError for groups that there are not.
    """
    order = expect_shape(tensors, name, (columns,)).long()
    if not bool(order.any()) or torch.equal(order, torch.arange(columns) // (columns // groups)):
        return None
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise CheckpointError(
            f"{name} of {tensors.files[name]} names the groups {int(order.min())}..{int(order.max())}, there are "
            f"0..{groups - 1}: copy it again"
        )
    return order


def expect_scale(tensors: TensorFiles, name: str, shape: tuple[int, int]) -> Tensor:
    """The scales `name` [out, groups], in float32. Raises GridError for scales that are not finite or outside
    2^-17..65504."""
    scale = expect_shape(tensors, name, shape).float()
    size = scale.abs()
    bad = ~((size >= MIN_SCALE) & (size <= MAX_SCALE))  # also catches NaN
    if bool(bad.any()):
        raise GridError(
            f"{tensors.files[name]}: {name} holds {float(scale[bad][0]):g}, outside the exact range 2^-17..65504: "
            f"copy the model again, or quantize it again with `sqft quantize`"
        )
    return scale
