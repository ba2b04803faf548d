"""The tensors of an adapter folder of PEFT: adapter_model.safetensors or, from older versions, adapter_model.bin."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sqft_plugins.errors import CheckpointError
from sqft_plugins.tune.adapters import check_adapter

PICKLED = "adapter_model.bin"


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder. Raises CheckpointError where it is none, or has no weights in either form."""
    folder = Path(path)
    pickled = (folder / PICKLED).is_file() and (folder / "adapter_config.json").is_file()
    return folder if pickled else check_adapter(path)


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Name → tensor, as PEFT would read them: safetensors first. Of a pickle nothing but tensors is loaded. Raises
    CheckpointError for a damaged file."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}): copy it again") from error

    file = folder / PICKLED
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise anything of a damaged file
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{file} is damaged, or no file of tensors alone ({why}): copy it again") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{file} holds no tensors by name: copy it again")
    return found
