"""The quantization method `sqft` in vLLM's registry, and which folders it claims. vLLM asks each of its methods whose a
folder is, so this one is there for every model; the configuration of a folder of ours (config.py) is imported when
there is one. Importing this imports nothing of vLLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.formats.compact import METHOD
from sqft_plugins.checkpoint.stamp import FOLDER, STAMP_FILE, parse_stamp, read_stamp
from sqft_plugins.errors import DependencyError
from vllm_ext.quantization.widths import STOCK, has_no_kernel
from vllm_ext.version import INSTALL, SUPPORTED

logger = logging.getLogger("vllm.sqft")


def claims(quantization: Mapping[str, Any], user_quant: str | None, hf_config: Any) -> bool:
    """Whether a model with this `quantization_config` is one of ours. user_quant: what `--quantization` says.

    `sqft/stamp.json` is the authority, the key `sqft` only the flag: transformers drops it when it saves again, and a
    copy of the weights alone keeps it. Where the model is a name on a hub, the flag decides. Raises CheckpointError for
    a stamp of a newer version.
    """
    if user_quant not in (None, METHOD):
        return False
    if quantization.get("quant_method") == METHOD:
        return True
    if (quantization.get("quant_method"), quantization.get("format")) != STOCK:
        return False

    # a name on a hub has no stamp to read
    name = str(getattr(hf_config, "name_or_path", None) or "")
    flag = quantization.get("sqft")
    if not name or not Path(name).is_dir():
        if flag is not None:
            parse_stamp(flag, f"the config.json of {name or 'the model'}")
        return flag is not None

    if read_stamp(Path(name)) is not None:
        return True
    if flag is not None:
        logger.warning(
            "%s is stamped in config.json but has no %s/%s: served as dense INT4 by vLLM itself; "
            "copy the whole folder again to serve it sparse", name, FOLDER, STAMP_FILE,
        )  # fmt: skip
    return False


def register(problem: str | None = None) -> None:
    """Registers the method, once.

    problem: why this vLLM is not supported. Then our folders are refused with DependencyError, which the log says
    beforehand.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    if METHOD in QUANTIZATION_METHODS:
        return
    refusal = f"vLLM is {problem}; sqft-plugins needs {SUPPORTED}: {INSTALL}" if problem else None
    if refusal is not None:
        logger.error("%s. Folders of sqft-plugins will be refused; other models are served", refusal)

    @register_quantization_config(METHOD)
    class SQFTQuantizationMethod(QuantizationConfig):
        """Claims our folders, and those of others of a width that stock vLLM cannot serve here; hands over to
        SQFTQuantizationConfig. There are no objects of this class."""

        @classmethod
        def override_quantization_method(  # type: ignore[override]
            cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
        ) -> str | None:
            if not claims(hf_quant_cfg, user_quant, hf_config):
                others = refusal is None and user_quant in (None, METHOD) and has_no_kernel(hf_quant_cfg)
                return METHOD if others else None
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
