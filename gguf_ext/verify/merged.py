"""`sqft verify BASE.gguf MERGED.gguf`: that a merge changed codes and nothing else.

Compared are bytes: every entry, the table of tensors, every tensor. Where a tensor differs, the codes of one file are
put into the other, and the bytes must be equal then.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, codes_of, replace_codes
from gguf_ext.errors import GGUFError
from gguf_ext.header import Part, TensorInfo
from gguf_ext.merge import merges_of
from gguf_ext.merge.stamp import KEY
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.tensors import Difference
from sqft_plugins.progress import track

CHUNK = 8 * 2**20
"""Bytes of a tensor that are compared at once."""


@dataclass
class MergedReport:
    """What `verify_merged` found.

    tensors: in both. equal: of these, those with the same bytes.
    recoded: tensors that differ in codes alone. weights: in these. changed: of the weights, those with another code.
    merges: the notes of the merges that the base has not.
    differences: all else.
    """

    tensors: int = 0
    equal: int = 0
    recoded: int = 0
    weights: int = 0
    changed: int = 0
    merges: list[dict[str, Any]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Only codes differ, and the file says so."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_merged(base: str | Path, merged: str | Path) -> MergedReport:
    """Compares two files, of files in parts the first parts. Raises GGUFError for a file that cannot be read; a
    difference is a line in the report."""
    one, other = GGUFFile(base), GGUFFile(merged)
    report = MergedReport(tensors=len(one.tensors.keys() & other.tensors.keys()))
    report.differences += [Difference(*item) for item in _of_headers(one, other)]
    for name in track(sorted(one.tensors.keys() & other.tensors.keys()), "comparing the tensors"):
        if found := _compare(one, other, name, report):
            report.differences.append(Difference(name, found))
    report.differences += [Difference(KEY, found) for found in _of_notes(one, other, report)]
    return report


def _of_headers(one: GGUFFile, other: GGUFFile) -> Iterator[tuple[str, str]]:
    """Name, and in what the headers differ: entries that are not ours to add, the table of tensors, the parts."""
    if len(one.parts) != len(other.parts):
        yield "parts", f"{len(one.parts)} in the base, {len(other.parts)} in the merged file"
    for before, after in zip(one.parts, other.parts, strict=False):
        for key in [*before.entries, *(key for key in after.entries if key not in before.entries)]:
            if key == KEY:
                continue
            if key not in before.entries or key not in after.entries:
                yield key, f"is in the {'base' if key in before.entries else 'merged file'} only"
            elif _bytes(before, *before.entries[key]) != _bytes(after, *after.entries[key]):
                yield key, "has another value"

    for name in sorted(one.tensors.keys() ^ other.tensors.keys()):
        yield name, f"is in the {'base' if name in one.tensors else 'merged file'} only"
    if [*one.tensors] != [*other.tensors] and one.tensors.keys() == other.tensors.keys():
        yield "tensors", "stand in another order"


def _compare(one: GGUFFile, other: GGUFFile, name: str, report: MergedReport) -> str | None:
    """Adds one tensor to the report; in what it differs, but for codes."""
    before, after = one.tensors[name], other.tensors[name]
    if (before.type, before.shape) != (after.type, after.shape):
        return f"is {before.type_name} {before.shape} in the base, {after.type_name} {after.shape} in the merged file"

    kind = TensorType(before.type) if before.is_ours and TensorType(before.type).is_block else None
    changed = frozen = False
    codes = 0
    for old, new in _rows(one, other, before):
        if np.array_equal(old, new):
            continue
        changed = True
        if kind is not None:
            wanted = codes_of(new, kind)
            codes += int(np.count_nonzero(codes_of(old, kind) != wanted))
            frozen |= not np.array_equal(replace_codes(old, wanted, kind), new)
    if not changed:
        report.equal += 1
        return None
    if kind is None:
        return f"differs, and {before.type_name} has no codes"
    if frozen:
        return f"differs in its scales, not in codes alone ({codes} of them)"
    report.recoded += 1
    report.weights += math.prod(before.shape)
    report.changed += codes
    return None


def _rows(one: GGUFFile, other: GGUFFile, info: TensorInfo) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Some rows of a tensor at a time, in both files."""
    first, second = one.raw(info.name), other.raw(info.name)
    step = max(1, CHUNK // max(1, first.shape[1]))
    for start in range(0, len(first), step):
        yield first[start : start + step], second[start : start + step]


def _of_notes(one: GGUFFile, other: GGUFFile, report: MergedReport) -> Iterator[str]:
    """In what the notes of the merges are not true. Adds those of the merged file to the report."""
    known, notes = merges_of(one), merges_of(other)
    if notes[: len(known)] != known:
        yield "does not begin with the merges of the base"
        return
    report.merges = notes[len(known) :]
    if not report.merges:
        if report.recoded:
            yield "is missing, but codes differ"
        return

    if report.merges[0].get("base_hash") != data_hash(one):
        yield "names another base than this"
    if report.merges[-1].get("data_hash") != data_hash(other):
        yield "is of other tensors than the file has: it was changed after the merge"


def data_hash(file: GGUFFile) -> str:
    """SHA-256 over the bytes from the first tensor of a part to its end, part after part: as `gguf_ext.merge` notes
    it. Raises GGUFError for a file that cannot be read."""
    digest = hashlib.sha256()
    for part in file.parts:
        try:
            with open(part.path, "rb") as source:
                source.seek(part.start)
                while piece := source.read(CHUNK):
                    digest.update(piece)
        except OSError as error:
            raise GGUFError(f"{part.path} cannot be read ({error.strerror or error}): copy it again") from error
    return digest.hexdigest()


def _bytes(part: Part, begin: int, end: int) -> bytes:
    return part.data[begin:end].tobytes()
