"""The sparse INT4 kernels of `sqft_plugins.kernels`, behind the operator interface: where they plug in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.kernels import SparseInt4Weight
from sqft_plugins.kernels.library import library
from sqft_plugins.kernels.operators import sparse_int4_linear
from sqft_plugins.mask import pack_mask
from vllm_ext.quantization.operators import MAX_DENSITY, Problem


@dataclass
class SparseState:
    """weight: the packed form, of which a plane replaces `values`."""

    weight: SparseInt4Weight

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.out_features, self.weight.in_features

    @property
    def mask(self) -> Tensor:
        return pack_mask(self.weight.mask())

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class SparseOperator:
    """Takes CPU shards where the kernels are compiled; a dense one only beside 16-bit activations, because float32 asks
    for more exactness than their fixed point, and has it in the float weight."""

    name = "sparse"

    def why_not(self, problem: Problem) -> str | None:
        if problem.device != "cpu":
            return f"the layer is on {problem.device}, the sparse kernels are for the CPU"
        if library().handle is None:
            return f"the sparse kernels are {library().why}"
        if problem.density > MAX_DENSITY and problem.dtype == torch.float32:
            return f"a float32 layer of which more than {MAX_DENSITY:.0%} is kept"
        return None

    def prepare(self, weight: QuantizedWeight, mask: Tensor, dtype: torch.dtype) -> SparseState:
        return SparseState(SparseInt4Weight.from_quantized(weight, mask))

    def plane(self, state: SparseState, codes: Tensor) -> Tensor:
        """The plane is another stream of `values`."""
        return state.weight.plane(codes)

    def linear(self, state: SparseState, x: Tensor, bias: Tensor | None, plane: Tensor | None = None) -> Tensor:
        weight = state.weight
        values = weight.values if plane is None else plane
        return sparse_int4_linear(
            x, weight.masks, values, weight.block_offsets, weight.scales, weight.zero_points, bias, weight.out_features
        )

    def unpack(self, state: SparseState, plane: Tensor | None = None) -> tuple[QuantizedWeight, Tensor]:
        weight = state.weight if plane is None else state.weight.with_values(plane)
        return weight.unpack(), weight.mask()
