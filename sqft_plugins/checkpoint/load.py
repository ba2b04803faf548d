"""Loading a folder with transformers, as plain float linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.errors import CheckpointError


def load_model(path: str | Path, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, INT4 folders dequantized into plain linears. A name that is no local
    folder is looked up on the hub. Raises CheckpointError."""
    if Path(path).is_dir():
        folder = ModelFolder(path)
        if folder.files and folder.grid is not None:
            kwargs["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **kwargs)
    except OSError as error:
        raise CheckpointError(f"model {path} is neither a folder here nor a model on the hub: check the path ({_first_line(error)})") from error
    return model.eval()


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`; raises CheckpointError where the folder has none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {path} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
