"""`merge_file`: a file, whole or in parts, with other codes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gguf_ext.errors import DamagedFileError, VerificationError
from gguf_ext.header import Part
from gguf_ext.merge.check import check_merge, merged_target
from gguf_ext.merge.copy import Tally, copy_tensors, header_of
from gguf_ext.merge.stamp import UNKNOWN, entry_bytes, merges_of
from gguf_ext.reader import GGUFFile
from gguf_ext.write.split import part_paths, write_parts
from sqft_plugins._version import VERSION
from sqft_plugins.identity import record_of


@dataclass(frozen=True)
class MergedFile:
    """What a merge wrote.

    path: the file, or the first of its parts. paths: all of them.
    tensors: with other codes. weights: in these. changed: of the weights, those with another code than before.
    base_hash, data_hash: SHA-256 over the bytes of the source, and of what was written, from the first tensor of a part
        to its end, part after part.
    bytes: of all parts.
    """

    path: str
    paths: list[str]
    tensors: int
    weights: int
    changed: int
    base_hash: str
    data_hash: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def merge_file(
    source: GGUFFile | str | Path,
    target: str | Path,
    codes: Mapping[str, Tensor],
    note: Mapping[str, Any],
    overwrite: bool = False,
) -> MergedFile:
    """Writes `source` with other codes in some tensors; every other byte of its tensors and metadata stays.

    source: the file, or the first of its parts. It is read only, and must not change meanwhile.
    target: the new file. A source in parts makes as many parts of that name.
    codes: tensor → uint8 [out, in], in the row order of the file. Each is asked for once, one after the other, and the
        memory of a merge is one of them.
    note: what the file shall say of the merge: "adapter", "adapter_hash" and whatever else JSON holds. Hashes of the
        tensors before and after are added.

    Raises what `check_merge` raises; DamagedFileError for a source that is cut off or changes. After an error there is
    no target, or the old one.
    """
    file = source if isinstance(source, GGUFFile) else GGUFFile(source)
    path = check_merge(file, target, codes.keys(), note, overwrite)
    told: dict[str, Any] = {**note, "base_hash": UNKNOWN, "data_hash": UNKNOWN, "version": VERSION}
    earlier = merges_of(file)
    tally, entry_at = Tally(), 0

    with write_parts(path, len(file.parts), overwrite) as places:
        for index, (part, place) in enumerate(zip(file.parts, places, strict=True)):
            entry = None if index else entry_bytes([*earlier, told])
            begin = _write(file, index, place, entry, codes, tally)
            entry_at = entry_at or begin
            _check_unchanged(part)

        # what was not known when the header was written
        told["base_hash"], told["data_hash"] = tally.before.hexdigest(), tally.after.hexdigest()
        with open(places[0], "r+b") as first:
            first.seek(entry_at)
            first.write(entry_bytes([*earlier, told]))
        _check_written(file, places[0], told)
        for part in file.parts:
            _check_unchanged(part)

    written = part_paths(path, len(file.parts))
    return MergedFile(
        path=str(merged_target(file, path)),
        paths=list(map(str, written)),
        tensors=tally.tensors,
        weights=tally.weights,
        changed=tally.changed,
        base_hash=told["base_hash"],
        data_hash=told["data_hash"],
        bytes=sum(one.stat().st_size for one in written),
    )


def _write(
    file: GGUFFile, index: int, place: Path, entry: bytes | None, codes: Mapping[str, Tensor], tally: Tally
) -> int:
    """One part → where its entry begins."""
    part = file.parts[index]
    infos = [info for info in file.tensors.values() if info.part == index]
    with ExitStack() as stack:
        source, target = stack.enter_context(open(part.path, "rb")), stack.enter_context(open(place, "wb"))
        header, begin = header_of(part, source, entry)
        target.write(header)
        copy_tensors(part, infos, source, target, codes, tally)
    return begin


def _check_unchanged(part: Part) -> None:
    """By what the file system says, and by the header, should a clock be too coarse to tell."""
    if record_of(part.path) != part.record or Part(part.path).hash != part.hash:
        raise DamagedFileError(f"{part.path} was changed while it was read: begin again when nothing writes to it")


def _check_written(file: GGUFFile, place: Path, told: Mapping[str, Any]) -> None:
    """Reads the headers of what was written. Raises VerificationError where they do not say what the source says."""
    written = GGUFFile(place)
    if [(info.name, info.type, info.shape) for info in written.tensors.values()] != [
        (info.name, info.type, info.shape) for info in file.tensors.values()
    ] or merges_of(written)[-1] != told:
        raise VerificationError(f"{place.name} does not say what it should: nothing was written, report this as a bug")
