"""`sqft verify BASE.gguf MERGED.gguf --adapter DIR`: what llama.cpp dequantizes of the merged file are the weights that
the last training step computed with, bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import AdapterError
from gguf_ext.ggml import to_float
from gguf_ext.merge import merges_of
from gguf_ext.model.file import GGUFModel
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.tensors import Difference
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.progress import track
from sqft_plugins.tune.merge_file import FileMerge, base_of


@dataclass
class ProofReport:
    """What `prove_merge` found.

    modules: of the adapter. weights: in these. equal: of the weights, those that ggml dequantizes to the bits of the
        last training step.
    differences: modules where it does not, and what else is not of this adapter.
    """

    modules: int = 0
    weights: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def prove_merge(base: str | Path, merged: str | Path, adapter: str | Path) -> ProofReport:
    """Computes the merge again, one weight in memory, at the ranks that the file says, and has ggml dequantize the
    file. base: the file that the adapter was trained over.

    Raises AdapterError for a file whose last merge is not of this adapter or not over this base, MismatchError for an
    adapter of another base, DependencyError without llama-cpp-python.
    """
    saved, file, written = SavedAdapter(adapter), GGUFModel(base), GGUFModel(merged)
    note = _note_of(file.source, written.source, saved)
    merge = FileMerge(file, base_of(file, file, saved), saved.folder, note["ranks"])
    merge.check()

    report = ProofReport(modules=len(merge))
    for module in track(list(merge), "proving"):
        codes = merge[module]
        wanted = file.quantized(module).grid.dequantize(codes)
        found = dequantized_by_ggml(written, module)
        same = int((wanted.view(torch.int32) == found.view(torch.int32)).sum())
        report.weights += wanted.numel()
        report.equal += same
        if same < wanted.numel():
            report.differences.append(Difference(module, f"{wanted.numel() - same} of {wanted.numel()} weights differ"))

    # nothing but what the adapter changes
    own = {file.int4.tensor_of(module) for module in merge}
    for name in file.source.tensors:
        if name not in own and _differs(file.source, written.source, name):
            report.differences.append(Difference(name, "is not of this adapter, and differs"))
    return report


def dequantized_by_ggml(model: GGUFModel, module: str) -> Tensor:
    """The weight of a module as llama.cpp has it, float32 [out, in], in the row order of the checkpoint."""
    kind = model.int4.type_of(module)
    weight = torch.from_numpy(to_float(model.source.raw(model.int4.tensor_of(module)), kind, *BLOCKS[kind]))
    order = model.int4.file_order(module)
    return weight if order is None else weight[torch.argsort(order)]


def _note_of(base: GGUFFile, merged: GGUFFile, saved: SavedAdapter) -> dict[str, Any]:
    """What the merged file says of its last merge."""
    before, notes = merges_of(base), merges_of(merged)
    if len(notes) != len(before) + 1:
        raise AdapterError(
            f"{merged.path} has {len(notes) - len(before)} merges more than {base.path}: give the file of the merge "
            "before its last"
        )
    note = notes[-1]
    if note.get("adapter_hash") != saved.folder.content_hash or not isinstance(note.get("ranks"), dict):
        raise AdapterError(
            f"{merged.path} was merged with {note.get('adapter')}, another adapter than {saved}: give that"
        )
    return note


def _differs(one: GGUFFile, other: GGUFFile, name: str) -> bool:
    return name not in other.tensors or one.raw(name).tobytes() != other.raw(name).tobytes()
