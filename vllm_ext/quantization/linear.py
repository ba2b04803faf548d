"""The linear method: vLLM's loaders fill the dense INT4 shard, and an operator takes it over.

Between loading and computing a layer holds `layer.sqft`, a `LoadedLinear`; the parameters that were loaded are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method

from sqft_plugins.errors import GridError, MismatchError
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, int4_weight, symmetric_zero_point, unpack, unpack_zero_point
from sqft_plugins.mask import packed_mask_shape, unpack_mask
from vllm_ext.quantization.choice import choose
from vllm_ext.quantization.operators import Operator, Problem, check_pruned
from vllm_ext.quantization.sources import Part, parts_of, shard_of

if TYPE_CHECKING:
    from vllm_ext.planes.switch import PlaneSwitch
    from vllm_ext.quantization.config import SQFTQuantizationConfig

logger = init_logger("vllm.sqft")
MULTIPLE = 32
"""Of `in` and `out` of a shard; what vLLM's loaders and its dense kernel ask for."""
PACKED_ROWS = 8


@dataclass
class LoadedLinear:
    """What a layer holds. prefix: vLLM's name of the layer. parts: the modules of the folder in it, None where its rows
    cannot be told from vLLM's mapping. state: the operator's. density: kept fraction of this shard."""

    prefix: str
    parts: Sequence[Part] | None
    operator: Operator
    state: Any
    density: float


_switch: PlaneSwitch | None = None


def set_plane_switch(switch: PlaneSwitch | None) -> None:
    """The switch that every layer of this process asks."""
    global _switch
    _switch = switch


@register_weight_loader_v2_supported_method
class SQFTLinearMethod(LinearMethodBase):
    """One object a layer. prefix: vLLM's name of the layer."""

    def __init__(self, config: SQFTQuantizationConfig, prefix: str):
        self.config, self.prefix = config, prefix

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """vLLM's own parameters of a dense INT4 shard. Raises GridError, before anything is loaded, for a shard that
        does not divide."""
        self._check_shard(layer, input_size_per_partition, output_partition_sizes)
        self.vllm_config = get_current_vllm_config()
        # Without LoRA there are no planes, and torch.compile need not follow the switch.
        self.has_adapters = self.vllm_config.lora_config is not None
        layer.scheme.create_weights(
            layer=layer,
            input_size=input_size,
            input_size_per_partition=input_size_per_partition,
            output_partition_sizes=output_partition_sizes,
            output_size=output_size,
            params_dtype=params_dtype,
            weight_loader=extra_weight_attrs["weight_loader"],
        )

    def _check_shard(self, layer: Any, columns: int, rows: list[int]) -> None:
        group, ranks = layer.scheme.group_size, getattr(layer, "tp_size", 1)
        wanted = [("in", columns, MULTIPLE), ("out", sum(rows), MULTIPLE)]
        if group != PER_CHANNEL:
            wanted.append(("in", columns, group))
        if not layer.scheme.symmetric:  # zero points are packed by eight rows, in each fused module by itself
            wanted += [("out", size, PACKED_ROWS) for size in rows]
        for name, size, by in wanted:
            if size % by:
                raise GridError(
                    f"{self.prefix}: {name}={size} of each of {ranks} tensor-parallel ranks is no multiple of {by}"
                    f"{' (the group size)' if by == group else ''}: use fewer ranks"
                    f"{', or pipeline parallelism' if ranks > 1 else ', or serve the float model'}"
                )

    def process_weights_after_loading(self, layer: Any) -> None:
        if hasattr(layer, "sqft"):
            return

        weight = _loaded(layer)
        parts, mask = self._mask(layer, weight)

        # the operator takes the shard over
        density = float(mask.double().mean())
        device = str(weight.codes.device.type)
        problem = Problem(
            (mask.shape[0], mask.shape[1]), layer.scheme.group_size, layer.scheme.symmetric, density,
            layer.params_dtype, device,
        )  # fmt: skip
        operator, reason = choose(problem)
        logger.info_once("sqft: operator %s (%s)", operator.name, reason)
        state = operator.prepare(weight, mask, layer.params_dtype)

        # what was loaded goes; vLLM's LoRA layers look for a parameter `weight_packed`, to learn the device
        for name in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"):
            if hasattr(layer, name):
                delattr(layer, name)
        layer.weight_packed = Parameter(torch.empty(0, dtype=torch.int32, device=device), requires_grad=False)
        layer.sqft = LoadedLinear(self.prefix, parts, operator, state, density)
        self._salt(operator)

    def _salt(self, operator: Operator) -> None:
        """The operator of a layer is part of its compiled graph, but of no configuration: without this, vLLM's cache of
        compiled graphs, keyed by configuration, could hand out another one."""
        factors = self.vllm_config.additional_config
        if isinstance(factors, dict):
            text = f"{factors.get('sqft_operators', '')}{self.prefix}:{operator.name};"
            factors["sqft_operators"] = hashlib.sha256(text.encode()).hexdigest()

    def _mask(self, layer: Any, weight: QuantizedWeight) -> tuple[Sequence[Part] | None, Tensor]:
        """Where the shard comes from and its mask bool [out, in]; all True where the folder has no mask for it."""
        everything = torch.ones_like(weight.codes, dtype=torch.bool)
        parts = parts_of(layer, self.prefix, self.config.sources, self.config.packed_modules_mapping)
        if parts is None:
            kind = type(layer).__name__
            logger.warning_once("sqft: vLLM fuses %s (%s) in a way unknown here: served dense", self.prefix, kind)
            return None, everything
        folder = self.config.model_folder()
        if not any(module in folder.masks for module, _ in parts):
            return parts, everything

        def packed(module: str) -> Tensor:
            if module in folder.masks:
                return folder.masks[module]
            return torch.full(packed_mask_shape(folder.int4.shape(module)), 255, dtype=torch.uint8)

        mask = unpack_mask(shard_of(layer, parts, packed), weight.codes.shape[1]).to(weight.codes.device)
        try:
            check_pruned(weight.codes, weight.zero_point, mask, self.prefix)
        except MismatchError as error:
            raise MismatchError(f"{self.config.folder}: {error}") from error
        return parts, mask

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return compute(layer, x, bias, self.has_adapters)

    def plane(self, layer: Any, codes: Callable[[str], Tensor]) -> Any:
        """The operator's plane of a layer. codes: module → uint8 [out, in] of the whole weight."""
        shard = shard_of(layer, layer.sqft.parts, codes).to(layer.weight_packed.device)
        return layer.sqft.operator.plane(layer.sqft.state, shard)


def compute(layer: Any, x: Tensor, bias: Tensor | None, has_adapters: bool) -> Tensor:
    """x: [..., in] → [..., out] by the layer's operator, each token with its plane."""
    loaded: LoadedLinear = layer.sqft
    tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
    switch = _switch if has_adapters else None
    groups = None if switch is None else switch.groups(layer, tokens.shape[0])
    if groups is None:
        y = loaded.operator.linear(loaded.state, tokens, bias)
    else:
        y = _by_plane(loaded, tokens, bias, groups)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _by_plane(
    loaded: LoadedLinear, x: Tensor, bias: Tensor | None, groups: Sequence[tuple[Tensor | None, Any]]
) -> Tensor:
    """x: [tokens, in] → [tokens, out], each group of tokens with its plane."""
    if len(groups) == 1 and groups[0][0] is None:
        return loaded.operator.linear(loaded.state, x, bias, groups[0][1])
    parts = [loaded.operator.linear(loaded.state, x[index], bias, plane) for index, plane in groups]
    y = x.new_empty(x.shape[0], parts[0].shape[1])
    for (index, _), part in zip(groups, parts, strict=True):
        y[index] = part
    return y


def _loaded(layer: Any) -> QuantizedWeight:
    """What vLLM's loaders left in the parameters of the layer, as codes, float32 scales and zero points."""
    codes = unpack(layer.weight_packed.data, layer.input_size_per_partition)
    scale = layer.weight_scale.data.to(torch.float32)
    if layer.scheme.symmetric:
        zero_point = symmetric_zero_point(scale)
    else:
        zero_point = unpack_zero_point(layer.weight_zero_point.data, codes.shape[0])
    return int4_weight(codes, scale, zero_point)
