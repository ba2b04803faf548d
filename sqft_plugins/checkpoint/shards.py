"""A safetensors file that is laid out first and then filled in any order, one tensor at a time.

The safetensors library writes a file from tensors that are all in memory. Here the header comes first, from names,
dtypes and shapes alone, and the file has its full size at once: a model larger than memory can be written, and a
writer that was killed goes on where it was. The bytes are those that the library would have written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's dtypes by the names that the format gives them."""
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tensor.dtype, tuple(tensor.shape))


class ShardFile:
    """A safetensors file of a fixed layout. `write` puts a tensor into its place."""

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]):
        """Opens `path`, or makes it where it is not there or laid out otherwise: then every tensor is zeros."""
        self.path, self.specs = path, dict(specs)
        header, self._offsets = layout(self.specs)
        size = len(header) + sum(spec.nbytes for spec in self.specs.values())
        if path.is_file():
            with open(path, "rb") as file:
                if path.stat().st_size == size and file.read(len(header)) == header:
                    return
            path.unlink()  # not cut off: tensors that were read from it may still be views of it
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(size)

    def write(self, name: str, tensor: Tensor) -> None:
        """Raises ValueError for a tensor that is not what the layout says."""
        if TensorSpec.of(tensor) != self.specs[name]:
            raise ValueError(f"{name} is {TensorSpec.of(tensor)}, laid out as {self.specs[name]}")
        with open(self.path, "r+b") as file:
            file.seek(self._offsets[name])
            file.write(_bytes(tensor))


def replace_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Writes other numbers into the place of a tensor, whatever program has laid out the file; every other byte stays.

    Raises ValueError for a tensor of another dtype or shape than the file has under this name.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        found = TensorSpec(BY_NAME[entry["dtype"]], tuple(entry["shape"]))
        if TensorSpec.of(tensor) != found:
            raise ValueError(f"{name} is {TensorSpec.of(tensor)}, in {path} it is {found}")
        file.seek(8 + length + entry["data_offsets"][0])
        file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def layout(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The header with its length in front, and where in the file each tensor begins.

    Wide dtypes come first, then by name, so that each tensor is aligned to its dtype: the library's own order.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for name, spec in sorted(specs.items(), key=lambda item: (-_rank(item[1].dtype), item[0])):
        starts[name] = offset
        end = offset + spec.nbytes
        entries[name] = {"dtype": DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


def _rank(dtype: torch.dtype) -> int:
    return LIBRARY_ORDER.index(DTYPES[dtype])


LIBRARY_ORDER = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""The order of the library's own enumeration of dtypes, which rules the order of the tensors in a file."""
