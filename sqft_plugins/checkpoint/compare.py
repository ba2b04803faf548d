"""Whether a quantized folder is another one with an adapter merged in: codes differ, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import FOLDER
from sqft_plugins.checkpoint.writer import CONFIG, is_weight_file
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import track

OWN = {"README.md", "chat_template.jinja", CONFIG, FOLDER}
"""What a merge writes beside the weights: the model card, the template that the adapter was trained with, the stamp."""


@dataclass
class FolderComparison:
    """What `compare_folders` found.

    tensors: in both. equal: of these, those with the same bytes.
    recoded: tensors that differ in codes alone. weights: in these. changed: of the weights, those with another code.
    differences: name → what differs, of all else.
    """

    tensors: int = 0
    equal: int = 0
    recoded: int = 0
    weights: int = 0
    changed: int = 0
    differences: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def compare_folders(base: str | Path, merged: str | Path) -> FolderComparison:
    """Compares two quantized folders of one format, one tensor of each in memory. A difference is a line in the report.

    Raises SQFTError for a base that is float or whose codes cannot be changed alone.
    """
    one, other = ModelFolder(base), ModelFolder(merged)
    if one.grid is None:
        raise SQFTError(f"{base} is float and has no codes: compare a quantized folder with what was merged into it")
    one.int4.check_recodable()
    both = [name for name in one.files if name in other.files]
    report = FolderComparison(len(both), differences=dict(_of_files(one, other)))

    modules = {one.int4.codes_name(module): module for module in one.int4.modules}
    for name in track(both, "comparing the tensors"):
        before, after = one.tensor(name), other.tensor(name)
        if before.dtype != after.dtype or before.shape != after.shape:
            report.differences[name] = "has another dtype or shape"
        elif torch.equal(before.flatten().view(torch.uint8), after.flatten().view(torch.uint8)):
            report.equal += 1
        elif name not in modules or other.grid != one.grid:
            report.differences[name] = "differs, and is none of the codes"
        else:
            codes, new = (folder.quantized(modules[name]).codes for folder in (one, other))
            report.recoded += 1
            report.weights += new.numel()
            report.changed += int(torch.count_nonzero(codes != new))
    return report


def _of_files(one: ModelFolder, other: ModelFolder) -> Iterator[tuple[str, str]]:
    """Name, and in what the folders differ without the numbers in their tensors."""
    for name in one.files.keys() ^ other.files.keys():
        yield name, f"is in the {'base' if name in one.files else 'merged folder'} only"
    if _without_stamp(one) != _without_stamp(other):
        yield CONFIG, "has other settings"
    names = {file.name for folder in (one, other) for file in folder.path.iterdir() if not is_weight_file(file)}
    for name in sorted(names - OWN):
        first, second = one.path / name, other.path / name
        if first.is_dir() or second.is_dir():
            continue
        if not (first.is_file() and second.is_file()):
            yield name, f"is in the {'base' if first.is_file() else 'merged folder'} only"
        elif first.read_bytes() != second.read_bytes():
            yield name, "differs"


def _without_stamp(folder: ModelFolder) -> dict[str, Any]:
    """config.json without the flag that a stamped folder has there."""
    quantization = {key: value for key, value in (folder.quantization or {}).items() if key != "sqft"}
    return {**folder.config, "quantization_config": quantization}
