"""One of our folders as vLLM sees it: what it holds, and which method each layer gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.checkpoint.formats.compact import METHOD, Compact
from sqft_plugins.checkpoint.int4 import quantization_config
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import BITS
from sqft_plugins.identity import State
from vllm_ext.met import meet
from vllm_ext.quantization.dequantized import DequantizedLinearMethod
from vllm_ext.quantization.linear import SQFTLinearMethod
from vllm_ext.quantization.loading import check_stream
from vllm_ext.quantization.sources import check_folder, weights_state
from vllm_ext.quantization.widths import is_dequantized
from vllm_ext.variables import forced_operator

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper

logger = init_logger("vllm.sqft")


class SQFTQuantizationConfig(CompressedTensorsConfig):
    """vLLM's compressed-tensors configuration, with a linear method of ours. It is pickled to every worker.

    folder: the model, known after `maybe_update_config`. dequantizes: whether its weights are loaded as float ones
    (dequantized.py). sources: vLLM's name of a module → its name in the folder.
    """

    folder: Path
    dequantizes: bool
    sources: dict[str, str]
    _opened: ModelFolder | None = None
    _state: list[State]

    def get_name(self) -> str:  # type: ignore[override]
        return METHOD

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SQFTQuantizationConfig:
        """config: the `quantization_config` of a pack-quantized folder, or of the compact form."""
        if config.get("quant_method") == METHOD:
            grid = GridStamp(**{field: config[field] for field in GridStamp.model_fields})
            config = quantization_config(grid, config.get("ignore", []))
        made = super().from_config(dict(config))
        assert isinstance(made, cls)
        return made

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Called once, in the process that the user started, before any worker: what is wrong with the folder is said
        here, in one line. Raises SQFTError."""
        from sqft_plugins.checkpoint.hub import local_folder

        meet()
        forced_operator()

        # the folder, and what is wrong with it
        if revision is not None and not Path(model_name).is_dir():
            raise SQFTError(f"revision={revision} of {model_name}: download it, and give vLLM the folder")
        self.folder = local_folder(model_name)
        folder = self.model_folder()
        check_folder(folder)
        self.dequantizes = is_dequantized(folder.int4.grid.kind.name)
        if self.dequantizes or folder.int4.name == Compact.name:
            check_stream()
        self.sources = {module: module for module in folder.int4.modules}

    def model_folder(self) -> ModelFolder:
        """The folder, opened once in each process: its masks are read one module at a time."""
        if self._opened is None:
            self._opened = ModelFolder(self.folder)
            self._state = weights_state(self._opened)
        return self._opened

    def is_unchanged(self) -> bool:
        """Whether the folder still holds what this process has loaded from it."""
        folder = self.model_folder()
        try:
            return weights_state(folder) == self._state
        except OSError:
            return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        meet()

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        super().apply_vllm_mapper(hf_to_vllm_mapper)
        self.sources = hf_to_vllm_mapper.apply_dict(self.sources)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if self.dequantizes and not isinstance(layer, Attention):
            return DequantizedLinearMethod(self, prefix) if isinstance(layer, LinearBase) else None
        method = super().get_quant_method(layer, prefix)
        if isinstance(layer, LinearBase) and isinstance(method, CompressedTensorsLinearMethod):
            scheme = layer.scheme
            if isinstance(scheme, CompressedTensorsWNA16) and scheme.num_bits == BITS:
                return SQFTLinearMethod(self, prefix)
        if method is not None and not isinstance(layer, (LinearBase, Attention)):
            kind = type(layer).__name__
            logger.warning_once("sqft: %s (%s) stays with vLLM's own %s, dense", prefix, kind, type(method).__name__)
        return method
