"""A model by its name: a folder here, or a download from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "README*"]
"""What a model folder needs; the same weights in other formats stay where they are."""


def local_folder(model: str | Path) -> Path:
    """The folder of a model; a name on the hub is downloaded into the hub's cache first. Raises CheckpointError."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"model {model} is a file: give the folder of a model")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(model)):  # cannot be a name on the hub: do not ask the network
        raise CheckpointError(f"model {model} is not a folder: check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"{model} is no folder here: asking the hub")
    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED, ignore_patterns=["original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"model {model} is neither a folder here nor a model on the hub: check the path ({lines[0][:160]})"
        ) from error
