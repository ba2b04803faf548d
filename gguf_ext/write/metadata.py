"""The metadata of a file: `general.*` for everybody, `sqft.*` for what was done to the model.

Not by `gguf.Metadata`: it makes a name of its own from that of the folder, in which llama.cpp looks for `phi-3`, and
takes parts of it for versions and fine-tunes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from gguf_ext.arch import Entry
from gguf_ext.blocks import TensorType
from gguf_ext.gguf_package import require_gguf
from gguf_ext.tokenizer.stripping import fitting_name
from gguf_ext.write.card import card_entries
from gguf_ext.write.plan import Planned
from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint import ModelFolder

WRITER = Entry("sqft.version", VERSION, "string")
"""Which version of this package wrote the file."""
EXACT = "sqft.exact"
"""Whether no weight of the file is rounded."""
QUANTIZATION_VERSION = 2
"""ggml's version of the block formats (GGML_QNT_VERSION)."""
FILE_TYPES = {TensorType.F32: 0, TensorType.F16: 1, TensorType.Q4_0: 2, TensorType.Q5_0: 8, TensorType.BF16: 32}
FILE_TYPES |= {TensorType.Q8_0: 7}
"""The type of most weights → `general.file_type` (llama.h, enum llama_ftype)."""


def general_entries(folder: ModelFolder, planned: list[Planned], rule: str = "") -> list[Entry]:
    """Name, size, types, and what the model card says. `general.architecture` is left to the writer. rule: what
    llama.cpp shall find in the name, see `tokenizer.stripping`."""
    name = fitting_name(_name(folder), rule)
    count = sum(tensor.weights for tensor in planned)
    entries = [
        Entry("general.type", "model", "string"),
        Entry("general.name", name, "string"),
        Entry("general.size_label", require_gguf().size_label(count, count, 0, 0), "string"),
        Entry("general.quantized_by", f"sqft-plugins {VERSION}", "string"),
        Entry("general.file_type", FILE_TYPES[main_type(planned)], "uint32"),
        Entry("general.quantization_version", QUANTIZATION_VERSION, "uint32"),
    ]
    return entries + card_entries(folder)


def stamp_entries(folder: ModelFolder) -> list[Entry]:
    """What the stamp and the grid of the model say; nothing where it has none."""
    entries = []
    if folder.grid is not None:
        entries.append(Entry("sqft.group_size", folder.grid.group_size, "int32"))
        entries.append(Entry("sqft.symmetric", folder.grid.symmetric, "bool"))

    stamp = folder.stamp
    if stamp is None:
        return entries

    entries += [
        Entry("sqft.pipeline", list(stamp.pipeline), "strings"),
        Entry("sqft.sparsity", stamp.sparsity, "float32"),
        Entry("sqft.mask_hash", stamp.mask_hash, "string"),
    ]
    if stamp.base:
        entries.append(Entry("sqft.base", stamp.base, "string"))
    if stamp.scale_hash:
        entries.append(Entry("sqft.scale_hash", stamp.scale_hash, "string"))

    return entries


def main_type(planned: Iterable[Planned]) -> TensorType:
    """The type that names the file: the commonest block type, else the type of most weights in matrices."""
    weights: Counter[TensorType] = Counter()
    for tensor in planned:
        if len(tensor.shape) > 1:
            weights[tensor.type] += tensor.weights
    blocks = Counter({kind: count for kind, count in weights.items() if kind.holds_steps})
    return (blocks or weights or Counter([TensorType.F32])).most_common(1)[0][0]


def _name(folder: ModelFolder) -> str:
    given = str(folder.config.get("_name_or_path") or "")
    return Path(given).name if given and not Path(given).is_dir() else folder.path.resolve().name
