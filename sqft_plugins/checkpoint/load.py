"""Loading a folder with transformers, as plain float linears."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sqft_plugins.checkpoint.attached import keep_grids_out_of_files
from sqft_plugins.checkpoint.dequantize import load_dequantized, why_not_stock
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import check_name, unknown_model
from sqft_plugins.errors import CheckpointError, SQFTError, first_line
from sqft_plugins.hardware import uncollected
from sqft_plugins.progress import quiet_libraries, say

VOCABULARY = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files of which every kind of tokenizer has at least one."""


def load_model(path: str | Path, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, INT4 folders dequantized into plain linears: by transformers or, where it
    cannot (AutoGPTQ, the compact form, GPT-2's Conv1D), by dequantize.py, and it says so. A name that is no local
    folder is looked up on the hub. Raises CheckpointError, GridError."""
    check_name(path)
    own = None
    if Path(path).is_dir():
        folder = ModelFolder(path)
        if folder.files and folder.grid is not None:
            own = why_not_stock(folder)
            if own is None:
                kwargs["quantization_config"] = CompressedTensorsConfig(dequantize=True)

    with as_checkpoint_error(path):
        if own is not None:
            say(f"{path}: read by sqft-plugins, {own}")
            with quiet_libraries():
                return load_dequantized(folder, dtype, **kwargs).eval()
        with quiet_libraries(), warnings.catch_warnings():
            # that our settings are added to those of the folder is what we want
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **kwargs).eval()
            keep_grids_out_of_files(model)
            return model


@contextmanager
def as_checkpoint_error(
    path: str | Path,
    why: str = "is no language model that transformers loads: check its files",
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError),
) -> Iterator[None]:
    """What transformers raises for a model that it cannot load becomes CheckpointError, which says `why`."""
    try:
        yield
    except SQFTError:
        raise
    except kinds as error:
        if not Path(path).is_dir():
            raise unknown_model(path, error) from error
        raise CheckpointError(f"model {path} {why} ({first_line(error)})") from error


def save_model(model: PreTrainedModel, folder: str | Path, **kwargs: Any) -> None:
    """`save_pretrained` without its bars."""
    with quiet_libraries():
        model.save_pretrained(folder, **kwargs)


@uncollected()
def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`; raises CheckpointError where the folder has none."""
    check_name(path)
    folder = Path(path)
    if folder.is_dir() and not any(file for pattern in VOCABULARY for file in folder.glob(pattern)):
        # transformers would make an empty tokenizer of the model's class and say nothing
        raise CheckpointError(f"model {path} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    why = "has no tokenizer that transformers reads: copy tokenizer.json and tokenizer_config.json into it"
    # damaged files make it raise TypeError, KeyError, …, tokenizers plain Exception
    with as_checkpoint_error(path, why, (Exception,)):
        return AutoTokenizer.from_pretrained(path)
