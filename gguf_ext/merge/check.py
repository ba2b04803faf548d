"""What is refused before a byte is written."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gguf_ext.errors import AdapterError, GGUFError
from gguf_ext.merge.stamp import merges_of
from gguf_ext.parts import part_name
from gguf_ext.reader import GGUFFile
from gguf_ext.write.split import check_target, part_paths


def merged_target(source: GGUFFile, target: str | Path) -> Path:
    """The file that a merge into `source` leaves when it is to write `target`: the first part where the source has
    parts."""
    return part_paths(Path(target), len(source.parts))[0]


def check_merge(
    source: GGUFFile,
    target: str | Path,
    names: Collection[str],
    note: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """The output path.

    source, target, names (of tensors), note, overwrite: as for `merge_file`.

    Raises GGUFError for a tensor that is not there or no grid, for a target that is the source or one of its parts, and
    as `check_target` does; AdapterError for an adapter that is in the file already.
    """
    source.check_stock()
    for name in names:
        source.grid_type(name)
    if not names:
        raise GGUFError(f"no tensor of {source.path} gets other codes: give an adapter of this model")

    path = Path(target)
    for part in source.parts:
        if would_replace(path, part.path):
            raise GGUFError(f"--out {target} is the model itself, which is never written to: choose another path")
    check_target(path, overwrite, split=len(source.parts) > 1)

    known = [merge.get("adapter_hash") for merge in merges_of(source)]
    if note.get("adapter_hash") in [one for one in known if one]:
        raise AdapterError(
            f"adapter {note.get('adapter')} is in {source.path} already: merge it into the file that it "
            "was trained over"
        )
    return path


def would_replace(target: Path, part: Path) -> bool:
    """Whether writing `target`, or parts of it, would take the place of `part`."""
    if target.exists() and os.path.samefile(target, part):
        return True
    name = part_name(part.name)
    beside = target.parent.is_dir() and os.path.samefile(target.parent, part.parent)
    return beside and name is not None and name.stem == target.name.removesuffix(".gguf")
