"""What one merge changes of a GGUF file, as a small file that is applied and taken back: `sqft export patch`, `sqft
patch`.

A patch is the exclusive or of two files that differ in codes alone, so the same operation leads there and back:

    base  ^ patch = merged          merged ^ patch = base

It is a safetensors file: for each tensor that differs `name` uint8 [bytes], bz2 of its bytes in one file xor those in
the other, and the stamp, `Stamp`, under the key `sqft_patch` of the metadata. Both files are known by their hashes, the
parts of a split file each, so the result is the other file bit for bit or there is none. bz2 takes a quarter more than
the entropy of scattered changes, less than zlib and lzma do, and a tenth of their time.
"""

from __future__ import annotations

import bz2
import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.header import Part
from gguf_ext.merge.check import would_replace
from gguf_ext.merge.copy import Tally, copy_bytes, exactly, header_of
from gguf_ext.merge.stamp import entry_bytes, merges_of
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.merged import verify_merged
from gguf_ext.write.split import check_target, part_paths, write_parts
from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint import write_file
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.elastic import Rank
from sqft_plugins.progress import track

KEY = "sqft_patch"


class Stamp(BaseModel):
    """headers: SHA-256 of all that stands before the tensors, of each part of the base and of the merged file; which of
    the two a file is, is known by them at once. files: of the whole parts. merges: the notes that the merged file has
    and the base has not. changed: weights with another code. weights: in the tensors that differ."""

    model_config = ConfigDict(extra="forbid")
    version: Literal[1] = 1
    created_by: str = f"sqft-plugins {VERSION}"
    headers: tuple[list[str], list[str]]
    files: tuple[list[str], list[str]]
    merges: list[dict[str, Any]]
    changed: int
    weights: int


@dataclass(frozen=True)
class Patched:
    """What `apply_patch` wrote. path: the file, or the first of its parts. undone: whether it is the base again."""

    path: str
    paths: list[str]
    undone: bool
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_patch(
    base: str | Path, merged: str | Path, out: str | Path, rank: Rank = "heuristic", overwrite: bool = False
) -> dict[str, Any]:
    """Writes the patch between a file and one that an adapter was merged into → path, bytes, number of tensors, and the
    fields of `Stamp`.

    base, merged: files, of split ones the first parts. merged may be the folder of an adapter, which is merged at
    `rank` into a file beside `out` that is not kept.

    Raises GGUFError where more than codes differs, and what a merge raises.
    """
    check_output_file(out, overwrite)
    if not Path(merged).is_dir():
        return _export(base, merged, out, overwrite)
    from sqft_plugins.tune.merge import merge_folder  # brings transformers

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".patch-", dir=Path(out).parent) as folder:
        report = merge_folder(base, merged, Path(folder) / "merged.gguf", rank)
        return _export(base, report["out"], out, overwrite)


def _export(base: str | Path, merged: str | Path, out: str | Path, overwrite: bool) -> dict[str, Any]:
    one, other = GGUFFile(base), GGUFFile(merged)
    for each in (one, other):
        each.check_stock()
    report = verify_merged(base, merged)
    if not report.ok or not report.merges:
        what = report.differences[0] if report.differences else None
        why = f"{what.name} {what.what}" if what else "both are the same"
        raise GGUFError(f"{merged} is not {base} with an adapter merged in ({why}): give the file that was merged into")
    stamp = Stamp(
        headers=([part.hash for part in one.parts], [part.hash for part in other.parts]),
        files=([_file_hash(part) for part in one.parts], [_file_hash(part) for part in other.parts]),
        merges=report.merges,
        changed=report.changed,
        weights=report.weights,
    )

    changes = {}
    for name in track(sorted(one.tensors), "comparing the tensors"):
        before, after = one.raw(name), other.raw(name)
        if not np.array_equal(before, after):
            packed = bz2.compress((before ^ after).tobytes())
            changes[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    with write_file(out, overwrite) as file:
        save_file(changes, file, metadata={KEY: stamp.model_dump_json()})
    return {"path": str(out), "bytes": Path(out).stat().st_size, "tensors": len(changes), **stamp.model_dump()}


def apply_patch(file: str | Path, patch: str | Path, out: str | Path, overwrite: bool = False) -> Patched:
    """Writes the other of the two files of a patch. One tensor is in memory at a time, `file` is only read.

    Raises GGUFError for a file that is neither of them, DamagedFileError for a patch that is damaged or a file whose
    tensors are others than its header says; then nothing is written.
    """
    source, change = GGUFFile(file), PatchFile(patch)
    source.check_stock()
    stamp, headers = change.stamp, [part.hash for part in source.parts]
    if headers not in stamp.headers:
        raise GGUFError(f"{file} is neither the base of {patch} nor what it makes of it: give one of these two files")
    undo = headers == stamp.headers[1]
    path = check_target(out, overwrite, split=len(source.parts) > 1)
    if any(would_replace(path, part.path) for part in source.parts):
        raise GGUFError(f"--out {out} is the file itself, which is never written to: choose another path")

    known = merges_of(source)
    notes = known[: -len(stamp.merges)] if undo else [*known, *stamp.merges]
    with write_parts(path, len(source.parts), overwrite) as places:
        for index, place in enumerate(places):
            found = _write(source, index, place, None if index else entry_bytes(notes), change)
            wanted = [files[index] for files in stamp.files]
            if found != tuple(wanted[::-1] if undo else wanted):
                where = source.parts[index].path
                raise DamagedFileError(
                    f"{where} or {patch} is damaged, the result would not be the other file: copy both again"
                )
    written = part_paths(path, len(source.parts))
    return Patched(str(written[0]), list(map(str, written)), undo, sum(one.stat().st_size for one in written))


class PatchFile:
    """A patch on disk; its tensors are read one at a time. Raises DamagedFileError for a file that is none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with safe_open(self.path, framework="np") as handle:
                text, self.names = (handle.metadata() or {}).get(KEY), set(handle.keys())
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(f"{path} is damaged or gone ({error}): copy the patch again") from error
        if text is None:
            raise DamagedFileError(f"{path} is no patch: make one with `sqft export patch`")
        try:
            self.stamp = Stamp.model_validate_json(text)
        except ValidationError as error:
            raise DamagedFileError(
                f"{path}: its stamp is damaged, or of a newer release than {VERSION}: copy the patch again, or upgrade"
            ) from error

    def change(self, name: str, size: int) -> bytes:
        """The bytes that a tensor of `size` bytes is combined with."""
        try:
            with safe_open(self.path, framework="np") as handle:
                unpacked = bz2.decompress(handle.get_tensor(name).tobytes())
        except (SafetensorError, OSError, ValueError, EOFError) as error:
            raise DamagedFileError(f"{self.path}: {name} is damaged ({error}): copy the patch again") from error
        if len(unpacked) != size:
            raise DamagedFileError(f"{self.path}: {name} has {len(unpacked)} bytes, not {size}: copy the patch again")
        return unpacked


def _write(source: GGUFFile, index: int, place: Path, entry: bytes | None, change: PatchFile) -> tuple[str, str]:
    """One part → SHA-256 of what was read, and of what was written."""
    part = source.parts[index]
    infos = [info for info in source.tensors.values() if info.part == index and info.name in change.names]
    tally = Tally()
    with ExitStack() as stack:
        old, new = stack.enter_context(open(part.path, "rb")), stack.enter_context(open(place, "wb"))
        tally.before.update(exactly(old, part.start, part))
        header, _ = header_of(part, old, entry)
        new.write(header)
        tally.after.update(header)

        old.seek(part.start)
        for info in track(sorted(infos, key=lambda info: info.offset), "patching"):
            copy_bytes(old, new, info.offset - old.tell(), part, tally)
            held = exactly(old, source.raw(info.name).nbytes, part)
            mixed = np.frombuffer(held, np.uint8) ^ np.frombuffer(change.change(info.name, len(held)), np.uint8)
            new.write(mixed.data)
            tally.before.update(held)
            tally.after.update(mixed.data)
        copy_bytes(old, new, part.size - old.tell(), part, tally)
    return tally.before.hexdigest(), tally.after.hexdigest()


def _file_hash(part: Part) -> str:
    with open(part.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
