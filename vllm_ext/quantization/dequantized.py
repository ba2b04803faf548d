"""Folders of 2, 3, 5, 6 and 8 bits on a CPU: vLLM's kernels there and ours are for 4 bits alone, so a weight is
dequantized once, when it is loaded, exactly as transformers would hold it, and computed as a float one.

vLLM's loaders get `module.weight` in place of codes and scales (loading.py). Without adapters what follows is vLLM's
own float linear. With them a layer keeps its float weight, beside which a value plane is another float weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod, register_weight_loader_v2_supported_method

from sqft_plugins.checkpoint import ModelFolder
from vllm_ext.quantization.linear import LoadedLinear, compute
from vllm_ext.quantization.sources import parts_of, shard_of

if TYPE_CHECKING:
    from vllm_ext.quantization.config import SQFTQuantizationConfig

logger = init_logger("vllm.sqft")


def dequantized_stream(folder: ModelFolder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder as a float model in `dtype` has them: `module.weight`, each weight rounded once, in place
    of codes, scales and zero points."""
    modules = folder.int4.modules
    size = sum(folder.int4.shape(module)[0] * folder.int4.shape(module)[1] for module in modules) * dtype.itemsize
    logger.info(
        "sqft: vLLM has no kernel for %d bits on a CPU: %d weights of %s are dequantized, %.1f MiB in %s",
        folder.int4.grid.bits, len(modules), folder.path, size / 2**20, dtype,
    )  # fmt: skip
    stored = {part for module in modules for part in folder.parts(module)}
    for name in folder.tensor_names:
        if name not in stored:
            yield name, folder.tensor(name)
    for module in modules:
        weight = folder.quantized(module).dequantize(dtype)
        yield f"{module}.weight", weight.t() if folder.is_transposed(module) else weight


class FloatOperator:
    """What computes such a layer: a GEMM. state, plane: the float weight [out, in]."""

    name = "float"

    def linear(self, state: Tensor, x: Tensor, bias: Tensor | None, plane: Tensor | None = None) -> Tensor:
        return F.linear(x, state if plane is None else plane, bias)


@register_weight_loader_v2_supported_method
class DequantizedLinearMethod(UnquantizedLinearMethod):
    """One object a layer. prefix: vLLM's name of the layer."""

    def __init__(self, config: SQFTQuantizationConfig, prefix: str):
        super().__init__()
        self.config, self.prefix = config, prefix
        self.vllm_config = get_current_vllm_config()

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.vllm_config.lora_config is None:
            return super().process_weights_after_loading(layer)
        if not hasattr(layer, "sqft"):
            parts = parts_of(layer, self.prefix, self.config.sources, self.config.packed_modules_mapping)
            operator: Any = FloatOperator()
            layer.sqft = LoadedLinear(self.prefix, parts, operator, layer.weight.data, 1.0)
        return None

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if hasattr(layer, "sqft"):
            return compute(layer, x, bias, has_adapters=True)
        return super().apply(layer, x, bias)

    def plane(self, layer: Any, codes: Callable[[str], Tensor]) -> Tensor:
        """As `SQFTLinearMethod.plane`."""
        folder = self.config.model_folder()

        def weight(module: str) -> Tensor:
            return folder.quantized(module)._replace(codes=codes(module)).dequantize(layer.sqft.state.dtype)

        return shard_of(layer, layer.sqft.parts, weight).to(layer.sqft.state.device)
