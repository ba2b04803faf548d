"""A model by its name: a folder here, or one on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.errors import CheckpointError, first_line
from sqft_plugins.progress import say

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "README*"]
"""What a model folder needs; the same weights in other formats stay where they are."""


def local_folder(model: str | Path) -> Path:
    """The folder of a model; a name on the hub is downloaded into the hub's cache first. Raises CheckpointError."""
    path = Path(model)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"model {model} is a file: give the folder of a model")
    check_name(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"{model} is no folder here: asking the hub")
    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED, ignore_patterns=["original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise unknown_model(model, error) from error


def check_name(model: str | Path) -> None:
    """Raises CheckpointError for what is neither a folder nor can be a name on the hub: a mistyped path, which is
    refused without asking the network."""
    if not Path(model).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(model)):
        raise CheckpointError(f"model {model} is not a folder: check the path")


def unknown_model(model: str | Path, error: Exception) -> CheckpointError:
    """The error for a name that the hub does not have."""
    return CheckpointError(
        f"model {model} is neither a folder here nor a model on the hub: check the path ({first_line(error)})"
    )
