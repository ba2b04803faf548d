"""The bytes of a GGUF file: metadata, then tensors one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gguf_ext.arch import Entry
from gguf_ext.gguf_package import require_gguf
from gguf_ext.write.plan import Planned
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import track


def write_tensors(
    path: Path, architecture: str, entries: Sequence[Entry], planned: Sequence[Planned], folder: ModelFolder | None
) -> None:
    """The file itself, streamed: one tensor in memory. folder: of the tensors; None where there are none."""
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    value_type = gguf.GGUFValueType
    named = {"floats": "FLOAT32", "ints": "INT32"}
    try:
        for key, value, kind in entries:
            if not kind.endswith("s"):
                writer.add_key_value(key, value, value_type[kind.upper()])
            elif value:  # GGUF has no empty arrays
                items = value_type[named.get(kind, kind.removesuffix("s").upper())]
                writer.add_key_value(key, value, value_type.ARRAY, sub_type=items)
        for tensor in planned:
            kind = gguf.GGMLQuantizationType(int(tensor.type))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        for tensor in track(planned, "writing the tensors"):
            assert folder is not None, tensor.name
            written = 0
            for piece in tensor.pieces(folder):
                out.write(np.ascontiguousarray(piece).data)  # `tofile` hides why it fails, such as a full disk
                written += piece.nbytes
            assert written == tensor.bytes, (tensor.name, written, tensor.bytes)
            writer.write_padding(out, written)
    finally:
        writer.close()
