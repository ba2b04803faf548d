"""A GGUF file that is small on disk too: `sqft export gguf --compact`, and back, bit for bit, `--expand`.

Sparse Q4_0 tensors become masks, kept codes and scales (packed.py); all else is copied. Ours alone read it:
`gguf_ext.load`, `sqft chat`, `sqft verify` and `sqft inspect`; every reader of stock files refuses it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_ext.blocks import TensorType
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.header import ARCHITECTURE, COMPACT
from gguf_ext.packed import VERSION, pack_blocks
from gguf_ext.parts import aligned
from gguf_ext.reader import GGUFFile
from gguf_ext.stock import StockFile, compact_header, entry_bytes
from sqft_plugins.checkpoint import write_file
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.progress import track

CHUNK = 8 * 2**20


@dataclass(frozen=True)
class Compacted:
    """bytes, before: of the file and of the one that it was made of. tensors: that are packed. packed, unpacked: bytes
    of these, in the two files."""

    path: str
    bytes: int
    before: int
    tensors: int = 0
    packed: int = 0
    unpacked: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compact_gguf(source: str | Path, target: str | Path, overwrite: bool = False) -> Compacted:
    """Writes the compact form of a stock file; one tensor is in memory at a time. What is written is read back as the
    stock file and compared with it before it gets its name.

    Raises GGUFError for a file in parts, one that is compact, one of which no tensor gets smaller, and one that does
    not follow from its header (gaps, another order of tensors).
    """
    check_output_file(target, overwrite)
    file = GGUFFile(source)
    part = file.parts[0]
    if len(file.parts) > 1:
        raise GGUFError(f"{source} is in {len(file.parts)} parts: export it as one file, then make that compact")
    if part.compact:
        raise GGUFError(f"{source} is compact already: take it as it is")
    if part.kinds.get(ARCHITECTURE) != "string":
        raise GGUFError(f"{source} has no {ARCHITECTURE}: give a model")
    with open(source, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()

    said = [
        entry_bytes(f"{COMPACT}version", VERSION, "uint32"),
        entry_bytes(f"{COMPACT}architecture", part.metadata[ARCHITECTURE], "string"),
        entry_bytes(f"{COMPACT}bytes", part.size, "uint64"),
        entry_bytes(f"{COMPACT}sha256", digest, "string"),
    ]
    infos, packed, offsets, unpacked = list(file.tensors.values()), {}, [], 0
    with write_file(target, overwrite) as place, tempfile.TemporaryFile(dir=Path(place).parent) as data:
        for info in track(infos, "packing"):
            raw = file.raw(info.name)
            offsets.append(data.tell())
            row = pack_blocks(raw) if info.type == TensorType.Q4_0 and len(info.shape) == 2 else None
            if row is not None and len(row) < raw.nbytes:
                packed[info.name], unpacked = len(row), unpacked + raw.nbytes
                data.write(row)
            else:
                data.write(raw.tobytes())
            data.write(bytes(aligned(data.tell(), part.alignment) - data.tell()))
        if not packed:
            raise GGUFError(f"{source}: no tensor gets smaller, none is Q4_0 with many zeros: keep the file as it is")
        data.seek(0)
        with open(place, "wb") as out:
            out.write(compact_header(part, infos, packed, offsets, said))
            shutil.copyfileobj(data, out, CHUNK)
        if _copy(StockFile(place), None) != digest:
            raise GGUFError(f"{source} is not laid out tensor behind tensor: export it again, then make it compact")
    size = os.path.getsize(target)
    return Compacted(str(target), size, part.size, len(packed), sum(packed.values()), unpacked)


def export_compact(model: str | Path, target: str | Path, overwrite: bool = False, **options: Any) -> Compacted:
    """`export_gguf` of a folder, of which only the compact form is kept: the stock file is there for a while, beside
    `target`. options: as for `export_gguf`. Raises what both raise."""
    from gguf_ext.export import export_gguf

    check_output_file(target, overwrite)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compact-", dir=Path(target).parent) as folder:
        export_gguf(model, Path(folder) / "stock.gguf", **options)
        return compact_gguf(Path(folder) / "stock.gguf", target, overwrite)


def expand_gguf(source: str | Path, target: str | Path, overwrite: bool = False) -> Compacted:
    """Writes the stock file of a compact one, bit for bit. Raises GGUFError for a file that is none, DamagedFileError
    where the result would be another file; then nothing is written."""
    check_output_file(target, overwrite)
    stock = StockFile(source)
    with write_file(target, overwrite) as place:
        if _copy(stock, place) != stock.sha256:
            raise DamagedFileError(f"{source} is damaged, the result would be another file: copy it again")
    return Compacted(str(target), stock.size, os.path.getsize(source))


def _copy(stock: StockFile, place: Path | None) -> str:
    """The stock file, written where there is a place → its SHA-256."""
    digest = hashlib.sha256()
    with open(place or os.devnull, "wb") as out:
        for at in track(range(0, stock.size, CHUNK), "comparing" if place is None else "expanding"):
            piece = stock.read(at, CHUNK)
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()
