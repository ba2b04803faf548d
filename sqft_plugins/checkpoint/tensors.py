"""The tensors in the weight files of a folder: which file holds each, and reading one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqft_plugins.checkpoint.json_object import REMEDY, read_object
from sqft_plugins.checkpoint.shards import BY_NAME, TensorSpec
from sqft_plugins.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorFiles:
    """Tensors by the names that they have in the files. Raises CheckpointError, naming the file or the tensor, for
    whatever is missing or damaged."""

    path: Path

    @property
    def files(self) -> dict[str, Path]:
        """Tensor name → the file that holds the tensor."""
        raise NotImplementedError

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored."""
        return read_tensor(self.file(name), name)

    def spec(self, name: str) -> TensorSpec:
        """dtype, shape and bytes of one tensor, from the header alone."""
        file = self.file(name)
        if file not in self._headers:
            self._headers[file] = read_header(file)
        dtype, shape = self._headers[file][name]
        if dtype not in BY_NAME:
            raise CheckpointError(f"tensor {name} of {file} has the unknown type {dtype}: convert it")
        return TensorSpec(BY_NAME[dtype], shape)

    @cached_property
    def _headers(self) -> dict[Path, dict[str, tuple[str, tuple[int, ...]]]]:
        """Those that were read: one names every tensor of its file, so reading it for each would be quadratic."""
        return {}

    def file(self, name: str) -> Path:
        """The file of one tensor."""
        if name not in self.files:
            raise CheckpointError(
                f"model {self.path} has no tensor {name}: copy the whole model again; if a mask or a stamp names it, "
                f"they are another model's"
            )
        return self.files[name]


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file. Raises CheckpointError for a damaged one."""
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}): {REMEDY}") from error


def read_tensor(file: Path, name: str) -> Tensor:
    with open_tensors(file) as handle:
        tensor: Tensor = handle.get_tensor(name)
        return tensor


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name → dtype, as the file writes it, and shape, of all tensors in a file."""
    with open_tensors(file) as handle:
        parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def find_tensors(path: Path, prefix: str = "", other: str | None = None) -> dict[str, Path]:
    """Tensor name → file, for the folder `path`.

    prefix: of the names of its index and its files. other: pattern of another name that a single file may have.
    """
    index, single = path / f"{prefix}{INDEX}", path / f"{prefix}{SINGLE}"
    if index.is_file() and not single.is_file():  # of both, one is a remainder; transformers takes the single file
        return _indexed(index)
    if not single.is_file() and other is not None:
        single = next(iter(sorted(path.glob(other))), single)
    if not single.is_file():
        raise CheckpointError(
            f"model {path} has no {single.name}: save it with save_pretrained(safe_serialization=True)"
        )
    with open_tensors(single) as handle:
        return dict.fromkeys(handle.keys(), single)


def _indexed(index: Path) -> dict[str, Path]:
    try:
        files = {name: index.parent / file for name, file in read_object(index, REMEDY)["weight_map"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no weight index ({error}): {REMEDY}") from error

    held: dict[Path, set[str]] = {}
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise CheckpointError(f"{file} is named in {index.name} but missing: {REMEDY}")
        with open_tensors(file) as handle:  # a file that is cut off says so here, before the long work
            held[file] = set(handle.keys())

    for name, file in files.items():
        if name not in held[file]:
            raise CheckpointError(f"{index} says that {name} is in {file.name}, it is not: {REMEDY}")
    return files
