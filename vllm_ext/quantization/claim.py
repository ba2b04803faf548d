"""Which folders quantization `sqft` claims. Imports nothing of vLLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.formats.compact import METHOD
from sqft_plugins.checkpoint.stamp import FOLDER, STAMP_FILE, parse_stamp, read_stamp

STOCK = ("compressed-tensors", "pack-quantized")
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
    name = str(getattr(hf_config, "_name_or_path", None) or "")
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
