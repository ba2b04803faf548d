"""Writing a file in parts: which tensors go into which, and how all of them are published together.

Not by `GGUFWriter(split_max_size=…)`: it counts the tensors without the metadata, so that its parts are larger than
asked for, and holds all parts open at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_ext.errors import GGUFError, TargetExistsError
from gguf_ext.parts import PartName, aligned, part_name
from sqft_plugins.checkpoint import write_file
from sqft_plugins.checkpoint.files import check_output_file, scratch_folder
from sqft_plugins.errors import OutputExistsError, SQFTError

if TYPE_CHECKING:
    from gguf_ext.write.plan import Planned

MAX_PARTS = 65535


def split_parts(planned: list[Planned], head: int, limit: int) -> list[list[Planned]]:
    """The tensors of each part, in order, so that no file is above `limit` bytes but one whose only tensor is. head:
    bytes of the metadata, which the first part has. Raises GGUFError for more parts than llama.cpp counts."""
    parts: list[list[Planned]] = [[]]
    size = head + PART_HEAD
    for tensor in planned:
        more = table_bytes(tensor) + aligned(tensor.bytes, ALIGNMENT)
        if parts[-1] and size + more > limit:
            parts.append([])
            size = PART_HEAD
        parts[-1].append(tensor)
        size += more
    if len(parts) > MAX_PARTS:
        raise GGUFError(f"--split-max-size {limit} makes {len(parts)} parts, llama.cpp counts to {MAX_PARTS}: raise it")
    return parts


PART_HEAD = 512
"""Bytes that a part has beside its tensors, at most: header, what is said of the part, padding before the tensors."""
ALIGNMENT = 32


def table_bytes(tensor: Planned) -> int:
    """Of one tensor in the table of a file: name, dimensions, type, offset."""
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def check_target(target: str | Path, overwrite: bool, split: bool = False) -> Path:
    """The output path. Raises TargetExistsError before any work, also for its parts where it may be `split`; GGUFError
    for a folder, and for a place that cannot be written."""
    path = Path(target)
    if split and part_name(path.name):
        raise GGUFError(f"--out {target} is the name of a part: give the name without -00001-of-…, parts are added")
    try:
        check_output_file(path, overwrite)
    except OutputExistsError as error:
        raise TargetExistsError(str(error)) from None
    except SQFTError as error:
        raise GGUFError(str(error)) from None
    if split and not overwrite and (parts := _parts_of(path)):
        raise TargetExistsError(
            f"--out {target}: {parts[0].name} exists: choose another path, or replace it with --overwrite"
        )
    return path


def part_paths(target: Path, count: int) -> list[Path]:
    """Where the parts of `target` stand; one part is the file itself."""
    names = PartName(target.name.removesuffix(".gguf"), 0, count)
    return [target] if count == 1 else [target.with_name(names.name(index)) for index in range(count)]


@contextmanager
def write_parts(target: Path, count: int, overwrite: bool) -> Iterator[list[Path]]:
    """Yields the paths of `count` parts in a folder beside `target`; on success they get their places, and what was
    there as `target`, whole or in parts, is gone. On any error they are removed and what was there stays. One part is a
    file as `write_file` writes it.

    The first part, without which llama.cpp loads nothing, is the last to come and of the old ones the first to go: a
    process that is killed leaves the old file, the new one, or none.
    """
    if count == 1:
        with write_file(target, overwrite) as temporary:
            yield [temporary]
        return

    with scratch_folder(target) as folder:
        parts = [folder / path.name for path in part_paths(target, count)]
        yield parts
        for part in parts:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        publish(parts, target, folder / "old")


def publish(parts: list[Path], target: Path, old: Path) -> None:
    """Moves the parts beside `target`, the first at last, and what is there to the folder `old`; back again on an error
    or Ctrl-C."""
    there = [*_parts_of(target), *([target] if target.exists() else [])]
    moves = [(path, old / path.name) for path in there]
    moves += [(part, target.with_name(part.name)) for part in reversed(parts)]
    old.mkdir()
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            os.replace(source, place)
            done.append((source, place))
    except BaseException:
        for source, place in reversed(done):
            os.replace(place, source)
        raise


def remove_parts(target: Path) -> None:
    """Removes the parts of `target`, the first of a set, which llama.cpp is given, before the others."""
    for part in _parts_of(target):
        part.unlink()


def _parts_of(target: Path) -> list[Path]:
    """The parts of `target` that are there, of any count, the first of a set in front."""
    stem = target.name.removesuffix(".gguf")
    if not target.parent.is_dir():
        return []
    found = ((part_name(path.name), path) for path in target.parent.iterdir() if path.is_file())
    return [path for _, path in sorted((name.index, path) for name, path in found if name and name.stem == stem)]
