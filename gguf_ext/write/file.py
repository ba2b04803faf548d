"""The bytes of a GGUF file: metadata, then tensors one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gguf_ext.arch import Entry
from gguf_ext.gguf_package import require_gguf
from gguf_ext.write.plan import Planned
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import track

ITEMS = {"floats": "FLOAT32", "ints": "INT32"}
"""`Entry.kind` of an array → the gguf package's name of its items, where that is not the kind without its s."""


def write_tensors(
    path: Path, architecture: str, entries: Sequence[Entry], planned: Sequence[Planned], folder: ModelFolder | None
) -> None:
    """The file itself, streamed: some rows of one tensor in memory.

    `GGUFWriter.write_tensor_data` wants a tensor whole, and hides with `tofile` why writing fails, such as a full disk.
    folder: of the tensors; None where there are none.
    """
    with _begun(path, architecture, entries, planned) as writer:
        (out,) = writer.fout
        writer.write_padding(out, out.tell())

        for tensor in track(planned, "writing the tensors"):
            assert folder is not None, tensor.name
            written = 0
            for piece in tensor.pieces(folder):
                out.write(np.ascontiguousarray(piece).data)
                written += piece.nbytes
            assert written == tensor.bytes, (tensor.name, written, tensor.bytes)
            writer.write_padding(out, written)


def header_bytes(architecture: str, entries: Sequence[Entry], planned: Sequence[Planned] = ()) -> int:
    """What a file of these entries and tensors has before its first tensor, without padding: written, and seen."""
    with (
        TemporaryDirectory() as folder,
        _begun(Path(folder) / "header.gguf", architecture, entries, planned) as writer,
    ):
        return int(writer.fout[0].tell())


@contextmanager
def _begun(path: Path, architecture: str, entries: Sequence[Entry], planned: Sequence[Planned]) -> Iterator[Any]:
    """A `GGUFWriter` that has written the metadata and the table of tensors."""
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    value_type = gguf.GGUFValueType
    try:
        for key, value, kind in entries:
            if not kind.endswith("s"):
                writer.add_key_value(key, value, value_type[kind.upper()])
            elif value:  # GGUF has no empty arrays
                items = value_type[ITEMS.get(kind, kind.removesuffix("s").upper())]
                writer.add_key_value(key, value, value_type.ARRAY, sub_type=items)
        for tensor in planned:
            kind = gguf.GGMLQuantizationType(int(tensor.type))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)

        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        yield writer
    finally:
        writer.close()
