"""The sparse INT4 kernels of `sqft_plugins.kernels`, behind the operator interface: where they plug in."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.kernels import SparseInt4Weight
from sqft_plugins.kernels.library import library
from sqft_plugins.kernels.operators import sparse_int4_linear
from vllm_ext.quantization.operators import MAX_DENSITY, Problem


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

    def prepare(self, weight: QuantizedWeight, mask: Tensor, dtype: torch.dtype) -> SparseInt4Weight:
        return SparseInt4Weight.from_quantized(weight, mask)

    def plane(self, state: SparseInt4Weight, codes: Tensor) -> Tensor:
        """The plane is another stream of `values`."""
        return state.plane(codes)

    def linear(self, state: SparseInt4Weight, x: Tensor, bias: Tensor | None, plane: Tensor | None = None) -> Tensor:
        values = state.values if plane is None else plane
        return sparse_int4_linear(
            x, state.masks, values, state.block_offsets, state.scales, state.zero_points, bias, state.out_features
        )
