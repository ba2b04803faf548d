"""Adapter weights in a pickle (`adapter_model.bin`): tensors alone, and no more of them than the file has bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from sqft_plugins.errors import CheckpointError, first_line


class Unpickled(dict[str, Any]):
    """Tensors by name, read as safetensors' handle is."""

    def get_tensor(self, name: str) -> Any:
        return self[name]

    get_slice = get_tensor


def read_pickled(file: Path, adapter: str, remedy: str) -> Unpickled:
    """The tensors. adapter, remedy: for messages. Raises CheckpointError for whatever torch's `weights_only` loader
    refuses, and for a file that would grow in memory: torch also reads what is compressed, or a tensor of 10¹² numbers
    that are one number, and saves neither of an adapter."""
    import torch

    try:
        _check_parts(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise anything of a damaged file
        raise CheckpointError(
            f"adapter {adapter}: {file.name} is damaged, or no file of tensors alone ({first_line(error, 80)}): "
            f"{remedy}"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise CheckpointError(f"adapter {adapter}: {file.name} holds no tensors by name: {remedy}")

    size = file.stat().st_size
    for name, tensor in found.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"adapter {adapter}: {name} of {file.name} is not stored number by number: {remedy}")
    return Unpickled(found)


def _check_parts(file: Path) -> None:
    """Raises ValueError for a zip archive whose parts are larger than they lie there; `torch.save` makes none."""
    if not zipfile.is_zipfile(file):
        return  # torch's older format, which reads from the file itself
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(part.file_size for part in parts) > file.stat().st_size:
        raise ValueError("its parts are larger than it is")
