"""Loading a folder with transformers, as plain float linears."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sqft_plugins.checkpoint.dequantize import load_dequantized
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import check_name, unknown_model
from sqft_plugins.errors import CheckpointError, SQFTError, first_line
from sqft_plugins.hardware import uncollected
from sqft_plugins.model_files import open_file
from sqft_plugins.progress import quiet_libraries
from sqft_plugins.structure import auto_class

VOCABULARY = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files of which every kind of tokenizer has at least one."""
OF_THE_HUB = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder")
"""Arguments of `from_pretrained` that say which config.json is read."""


def load_model(path: str | Path, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """`from_pretrained` of the class that `auto_class` finds: a language model, alone or with a tower for images. INT4
    folders of every format as plain linears, exact in `dtype` and with their grid (dequantize.py); a file that a
    plug-in reads as its plug-in loads it. A name that is no local folder is looked up on the hub. Raises
    CheckpointError, GridError."""
    if (file := open_file(path)) is not None:
        with quiet_libraries():
            return file.load(dtype, **kwargs).eval()
    check_name(path)
    folder = ModelFolder(path) if Path(path).is_dir() else None

    with as_checkpoint_error(path), quiet_libraries():
        if folder is not None and folder.files and folder.grid is not None:
            return load_dequantized(folder, dtype, **kwargs).eval()
        found = {name: kwargs[name] for name in OF_THE_HUB if name in kwargs}
        kind = auto_class(AutoConfig.from_pretrained(path, **found))
        model: PreTrainedModel
        model, info = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **kwargs)
    _check_complete(path, model, info["missing_keys"])
    return model.eval()


def _check_complete(path: str | Path, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raises CheckpointError for a weight that the files lack, which transformers makes up, and for one that nothing
    has filled."""
    empty = [] if getattr(model, "hf_device_map", None) else [*model.named_parameters(), *model.named_buffers()]
    lacks = sorted({*missing, *(name for name, tensor in empty if tensor.is_meta)})
    if lacks:
        raise CheckpointError(
            f"model {path} lacks the tensor {lacks[0]} ({len(lacks)} in all), which would be random numbers: copy the "
            "whole model again"
        )


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
    """`AutoTokenizer.from_pretrained`; of a model that is a file, what its plug-in makes of it. Raises CheckpointError
    where the folder has none."""
    if (model := open_file(path)) is not None:
        return model.tokenizer()
    check_name(path)
    folder = Path(path)
    if folder.is_dir() and not any(file for pattern in VOCABULARY for file in folder.glob(pattern)):
        # transformers would make an empty tokenizer of the model's class and say nothing
        raise CheckpointError(f"model {path} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    why = "has no tokenizer that transformers reads: copy tokenizer.json and tokenizer_config.json into it"
    # damaged files make it raise TypeError, KeyError, …, tokenizers plain Exception
    with as_checkpoint_error(path, why, (Exception,)):
        return AutoTokenizer.from_pretrained(path)
