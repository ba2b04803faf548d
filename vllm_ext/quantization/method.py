"""The quantization method `sqft` in vLLM's registry. vLLM asks each of its methods whose a folder is, so this one is
there for every model; the configuration of a folder of ours (config.py) is imported when there is one."""

from __future__ import annotations

import logging
from typing import Any

from sqft_plugins.checkpoint.formats.compact import METHOD
from sqft_plugins.errors import DependencyError
from vllm_ext.quantization.claim import claims
from vllm_ext.version import INSTALL, SUPPORTED


def register(problem: str | None = None) -> None:
    """Registers the method, once.

    problem: why this vLLM is not supported. Then our folders are refused with DependencyError, which the log says
    beforehand.
    """
    from vllm.model_executor.layers.quantization import _CUSTOMIZED_METHOD_TO_QUANT_CONFIG, register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    if METHOD in _CUSTOMIZED_METHOD_TO_QUANT_CONFIG:
        return
    refusal = f"vLLM is {problem}; sqft-plugins needs {SUPPORTED}: {INSTALL}" if problem else None
    if refusal is not None:
        logging.getLogger("vllm.sqft").error(
            "%s. Folders of sqft-plugins will be refused; other models are served", refusal
        )

    @register_quantization_config(METHOD)
    class SQFTQuantizationMethod(QuantizationConfig):
        """Claims our folders, and hands over to SQFTQuantizationConfig; there are no objects of this class."""

        @classmethod
        def override_quantization_method(  # type: ignore[override]
            cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
        ) -> str | None:
            if not claims(hf_quant_cfg, user_quant, hf_config):
                return None
            if refusal is not None:
                raise DependencyError(
                    f"{refusal}; or serve the folder as dense INT4 with --quantization compressed-tensors"
                )
            return METHOD

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
            if refusal is not None:
                raise DependencyError(refusal)
            from vllm_ext.quantization.config import SQFTQuantizationConfig

            return SQFTQuantizationConfig.from_config(config)

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []
