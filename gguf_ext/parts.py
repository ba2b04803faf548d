"""The parts of a file that is split, as llama.cpp names and counts them: NAME-00001-of-00003.gguf.

Each part is a GGUF file with `split.no` (from 0), `split.count` and `split.tensors.count` (of all parts); the metadata
stands in the first. llama.cpp is given the first and finds the others by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf_ext.errors import DamagedFileError, GGUFError

MAGIC = b"GGUF"
INDEX, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
NAME = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")


def check_file(path: str | Path, argument: str = "file") -> int:
    """The bytes of a GGUF file. Raises GGUFError for a path that is no file, DamagedFileError for a file of another
    kind; both name the argument that gave the path, such as "--template-gguf"."""
    if not Path(path).is_file():
        raise GGUFError(f"{argument} {path} is not a file: give the path of a GGUF file")
    size = Path(path).stat().st_size
    if size < 24:
        raise DamagedFileError(f"{argument} {path} has {size} bytes, too few for a GGUF file: copy or export it again")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DamagedFileError(f"{argument} {path} does not begin with GGUF: it is no GGUF file, give another")
    return size


@dataclass(frozen=True)
class PartName:
    """NAME-00001-of-00003.gguf: stem NAME, index from 0."""

    stem: str
    index: int
    count: int

    def name(self, index: int) -> str:
        return f"{self.stem}-{index + 1:05}-of-{self.count:05}.gguf"


def part_name(name: str) -> PartName | None:
    """What the name of a part says; None where it is none."""
    found = NAME.fullmatch(name)
    if found is None or not 1 <= int(found["index"]) <= int(found["count"]):
        return None
    return PartName(found["stem"], int(found["index"]) - 1, int(found["count"]))


def aligned(size: int, alignment: int) -> int:
    """Bytes with the padding behind them."""
    return -(-size // alignment) * alignment
