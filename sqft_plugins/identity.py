"""Is it still the same file? Its content says so, for the whole project.

Size, inode and time of change can all come back: `tar`, `rsync -t` and `cp -p` set the time, and a new file gets the
inode of a deleted one. So an identity is a hash of the content. A file is read again only where the kernel's record of
it (`State`) has changed: `st_ctime_ns` is set by the kernel alone, at every write, rename and change of times. While a
file is younger than a tick of that clock, two writes can leave one record; so long it is read each time.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

IGNORED = (".md", ".png", ".html", ".log", ".csv")
"""Ends of files in a model folder that no runtime reads."""
FINE_TICK_NS, COARSE_TICK_NS = 100_000_000, 2_000_000_000
"""No clock of Linux ticks more slowly than every 10 ms; file systems that keep whole seconds count by one or by two."""
REMEMBERED = 4096
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")

State = tuple[tuple[int, ...], ...]
"""Of each file: device, inode, size, and the times of its last change (of content, of anything) in nanoseconds."""
T = TypeVar("T")


def state_of(path: Path) -> State:
    """The kernel's record of a file, or of all files in a folder. Costs a microsecond or two a file. Raises OSError."""
    return tuple(map(record_of, [path] if not path.is_dir() else files_of(path)))


def is_settled(state: Iterable[Sequence[Any]], now_ns: int) -> bool:
    """Whether any later write must leave another record than this one, taken at `now_ns` (of `time.time_ns`). state: a
    `State`, or other records of which the last number is the time of the last change."""
    return all(now_ns - changed > (FINE_TICK_NS if changed % 10**9 else COARSE_TICK_NS) for *_, changed in state)


def while_unchanged(
    function: Callable[[Path], T], records_of: Callable[[Path], Sequence[Sequence[Any]]] = state_of
) -> Callable[[Path], T]:
    """Remembers `function(path)`, which depends on nothing but the file or folder `path`, until that changes.

    records_of: the kernel's records of what it depends on, as `is_settled` takes them, where that is a part of the
    folder only. Raises OSError where the path is gone.
    """
    known: dict[Path, tuple[Sequence[Sequence[Any]], T]] = {}  # what was found out longest ago first
    lock = Lock()

    @wraps(function)
    def remembered(path: Path) -> T:
        path = Path(os.path.abspath(path))
        now, before = time.time_ns(), records_of(path)
        found = known.get(path)
        if found is not None and found[0] == before:
            return found[1]
        value = function(path)
        lasting = is_settled(before, now) and records_of(path) == before
        with lock:
            known.pop(path, None)
            if lasting:
                known[path] = before, value
            if len(known) > REMEMBERED:
                known.pop(next(iter(known)))
        return value

    return remembered


@while_unchanged
def file_hash(file: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_hash(path: str | Path) -> str:
    """SHA-256 over the names and contents of a file, or of the files of a folder. A part of a split GGUF file stands
    for all of them: llama.cpp finds the others by their names. Raises OSError."""
    path = Path(path)
    if path.is_dir():
        return hash_of_files([file for file in files_of(path) if file.suffix not in IGNORED], path)
    part = _PART.fullmatch(path.name)
    if part is None:
        return hash_of_files([path], path.parent)
    found = {file: _PART.fullmatch(file.name) for file in path.parent.iterdir()}
    return hash_of_files([file for file, one in found.items() if one and one.groups() == part.groups()], path.parent)


def hash_of_files(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over the contents of files and their names below `root`. Raises OSError."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(root)} {file_hash(file)}\n".encode())
    return total.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files in a folder and below, without hidden ones; what a link leads to belongs to it. In order."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a ring of links
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def record_of(file: Path) -> tuple[int, int, int, int, int]:
    """The kernel's record of one file or folder, as in `State`. Raises OSError."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def identity_of_code() -> str:
    """Of the core's own sources: what one has half done is not finished by another of the same version."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
