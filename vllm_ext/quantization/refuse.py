"""Quantization `sqft` under a vLLM that this release does not know: our folders are refused, nothing else changes."""

from __future__ import annotations

from typing import Any

from sqft_plugins.errors import DependencyError
from vllm_ext.version import INSTALL, SUPPORTED


def register_refusal(problem: str) -> None:
    """Registers a method `sqft` that raises DependencyError for a stamped folder, and says `problem` in the log."""
    import logging

    message = f"vLLM is {problem}; sqft-plugins needs {SUPPORTED}: {INSTALL}"
    logging.getLogger("vllm.sqft").error(
        "%s. Folders of sqft-plugins will be refused; other models are served", message
    )

    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    from vllm_ext.quantization.claim import claims

    @register_quantization_config("sqft")
    class Refused(QuantizationConfig):  # type: ignore[misc]
        @classmethod
        def override_quantization_method(
            cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
        ) -> None:
            if claims(hf_quant_cfg, user_quant, hf_config):
                raise DependencyError(
                    f"{message}; or serve the folder as dense INT4 with --quantization compressed-tensors"
                )

        def get_name(self) -> str:  # type: ignore[override]
            return "sqft"

        def get_supported_act_dtypes(self) -> list:
            return []

        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
            raise DependencyError(message)

        def get_quant_method(self, layer: Any, prefix: str) -> None:
            raise DependencyError(message)
