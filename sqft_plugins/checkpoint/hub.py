"""A model by its name: a folder here, or one on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.errors import CheckpointError, first_line
from sqft_plugins.model_files import reader_of
from sqft_plugins.progress import say

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "README*"]
"""What a model folder needs; the same weights in other formats stay where they are."""


def local_folder(model: str | Path) -> Path:
    """The folder of a model, or the file of one that a plug-in reads; a name on the hub is downloaded into the hub's
    cache first. Raises CheckpointError."""
    if (reader := reader_of(model)) is not None:
        return reader.locate(model)
    check_name(model)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    say(f"{model} is no folder here: asking the hub")
    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED, ignore_patterns=["original/*"]))
    except (OSError, ValueError) as error:  # what the hub's package raises is one of them
        raise unknown_model(model, error) from error


def config_folder(model: str | Path) -> Path:
    """The folder of a model's config.json: of a name on the hub nothing else is fetched. Raises CheckpointError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(model), "config.json")).parent
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model {model} is not a folder, and its config.json is not to be had from the hub: check the path, or put "
            f"config.json in a folder of that name ({first_line(error, 120)})"
        ) from error


def check_folder(path: str | Path) -> Path:
    """The file config.json of a model folder. Raises CheckpointError for what is no model folder."""
    config = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise CheckpointError(f"model {path} is not a folder: give the path of a model saved by save_pretrained")
    if not config.is_file():
        raise CheckpointError(
            f"model {path} has no config.json: give a model folder; if it is an adapter, give its base model"
        )
    return config


def check_model(model: str | Path) -> None:
    """Raises CheckpointError for what is neither a model folder nor a model that a plug-in reads."""
    if reader_of(model) is None:
        if Path(model).is_file():
            raise CheckpointError(f"model {model} is a file that no plug-in reads: give a model folder or a .gguf file")
        check_folder(model)


def check_name(model: str | Path) -> None:
    """Raises CheckpointError for what is neither a folder nor can be a name on the hub: a mistyped path, which is
    refused without asking the network."""
    if Path(model).exists() and not Path(model).is_dir():
        raise CheckpointError(f"model {model} is a file: give the folder of a model")
    if not Path(model).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(model)):
        raise CheckpointError(f"model {model} is not a folder: check the path")


def unknown_model(model: str | Path, error: Exception) -> CheckpointError:
    """The error for a name that the hub does not have."""
    return CheckpointError(
        f"model {model} is neither a folder here nor a model on the hub: check the path ({first_line(error)})"
    )
