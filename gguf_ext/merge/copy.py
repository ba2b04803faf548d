"""The bytes of one file, from the source to the target, with other codes in some tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from gguf_ext.blocks import TensorType, codes_of, replace_codes, row_bytes
from gguf_ext.blocks.planes import Bytes
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.header import Part, TensorInfo
from gguf_ext.merge.stamp import KEY
from sqft_plugins.progress import track

CHUNK = 8 * 2**20
"""Bytes in memory while they are copied, and about the weights whose codes are replaced at once."""


@dataclass
class Tally:
    """What is found out while bytes pass.

    before, after: SHA-256 over the bytes of source and target from the first tensor of a part to its end, part after
        part.
    tensors: with new codes. weights: in these. changed: of the weights, those with another code than before.
    """

    before: Any = field(default_factory=hashlib.sha256)
    after: Any = field(default_factory=hashlib.sha256)
    tensors: int = 0
    weights: int = 0
    changed: int = 0


def header_of(part: Part, source: BinaryIO, entry: bytes | None) -> tuple[bytes, int]:
    """The header of a part up to its first tensor, with padding, and where in it the entry begins (0 without one).

    entry: `stamp.entry_bytes`, which takes the place of an older one, empty for a file without merges; None for the
        parts that have none.
    """

    def held(begin: int, end: int) -> bytes:
        source.seek(begin)
        return exactly(source, end - begin, part)

    if entry is None:
        return held(0, part.start), 0
    kept = [held(*span) for key, span in part.entries.items() if key != KEY]
    count = len(kept) + bool(entry)
    head = held(0, 16) + count.to_bytes(8, "little") + b"".join(kept)
    whole = head + entry + held(*part.table)
    return whole + bytes(-len(whole) % part.alignment), len(head)


def copy_tensors(
    part: Part, infos: list[TensorInfo], source: BinaryIO, target: BinaryIO, codes: Mapping[str, Tensor], tally: Tally
) -> None:
    """Everything from the first tensor of a part to its end.

    infos: the tensors of this part. codes: tensor → its new codes, uint8 [out, in] in the row order of the file.
    """
    at = part.start
    source.seek(at)
    changed = sorted((info for info in infos if info.name in codes), key=lambda info: info.offset)
    for info in track(changed, "merging"):
        copy_bytes(source, target, info.offset - at, part, tally)
        at = info.offset + _replace(source, target, part, info, codes[info.name], tally)
    copy_bytes(source, target, part.size - at, part, tally)


def _replace(source: BinaryIO, target: BinaryIO, part: Part, info: TensorInfo, new: Tensor, tally: Tally) -> int:
    """Copies one tensor with new codes → its bytes."""
    kind = TensorType(info.type)
    rows, columns = math.prod(info.shape[:-1]), info.shape[-1]
    wanted = new.cpu().numpy()
    if wanted.dtype != np.uint8 or wanted.shape != (rows, columns):
        raise GGUFError(
            f"codes of {info.name} are {wanted.dtype} {tuple(wanted.shape)}: give uint8, ({rows}, {columns})"
        )

    width = row_bytes(columns, kind)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        some = np.ascontiguousarray(wanted[start : start + step])
        held = exactly(source, len(some) * width, part)
        raw: Bytes = np.frombuffer(held, np.uint8).reshape(-1, width)
        changed = replace_codes(raw, some, kind).data
        target.write(changed)
        tally.before.update(held)
        tally.after.update(changed)
        tally.changed += int(np.count_nonzero(codes_of(raw, kind) != some))
    tally.tensors += 1
    tally.weights += rows * columns
    return rows * width


def copy_bytes(source: BinaryIO, target: BinaryIO, count: int, part: Part, tally: Tally) -> None:
    while count > 0:
        piece = exactly(source, min(count, CHUNK), part)
        target.write(piece)
        tally.before.update(piece)
        tally.after.update(piece)
        count -= len(piece)


def exactly(source: BinaryIO, count: int, part: Part) -> bytes:
    """The next `count` bytes. Raises DamagedFileError where there are fewer."""
    piece = source.read(count)
    if len(piece) != count:
        raise DamagedFileError(f"{part.path} ends before it should: it was changed while it was read, begin again")
    return piece
