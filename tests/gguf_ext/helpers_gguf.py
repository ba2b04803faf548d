"""A GGUF file with other metadata."""

from __future__ import annotations

import gguf
from gguf import GGUFReader, GGUFValueType

from gguf_ext.reader import GGUFFile

NAMED = {"floats": "FLOAT32", "ints": "INT32"}


def rewritten(source, target, changes, architecture=None, without=(), more=None):
    """A file with other metadata: key → (value, kind), None to leave it out. architecture: another, in its keys too.
    without: tensors to leave out. more: name → array of a further tensor."""
    read = GGUFFile(source)
    before = read.metadata["general.architecture"]
    name = architecture or before
    writer = gguf.GGUFWriter(target, name)
    own = {key: f"{name}.{key.removeprefix(before + '.')}" for key in read.metadata if key.startswith(f"{before}.")}
    items = {own.get(key, key): (value, read.kinds[key]) for key, value in read.metadata.items()} | changes
    for key, item in items.items():
        if item is None or key == "general.architecture":
            continue
        value, kind = item
        if kind.endswith("s"):
            kind = GGUFValueType[NAMED.get(kind, kind.removesuffix("s").upper())]
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, value, GGUFValueType[kind.upper()])
    for tensor in GGUFReader(source).tensors:
        if tensor.name not in without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
