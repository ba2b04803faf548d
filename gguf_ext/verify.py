"""`sqft verify`: whether a GGUF file holds the very weights of a model, and every pruned one is 0.

The file is read by our own reader and dequantized by our own code, neither of which wrote it. Equal means equal bits:
an INT4 weight is compared with fp32 `scale * (code - zero_point)`, a float one with the model's, rounded to the type it
has in the file (no rounding happens where that type is exact, as the exporter chooses it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf_ext.arch import find_architecture, read_config
from gguf_ext.blocks import TensorType, row_bytes
from gguf_ext.errors import GGUFError
from gguf_ext.metadata import model_entries
from gguf_ext.plan import Source, sources
from gguf_ext.reader import GGUFFile
from gguf_ext.transcode import TORCH_TYPES, row_slices
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import track


@dataclass(frozen=True)
class Difference:
    """One thing that is not equal. name: a tensor or metadata key. what: a line. largest: the largest |difference|."""

    name: str
    what: str
    largest: float = 0.0


@dataclass
class VerifyReport:
    """tensors: in the model. equal: bit-equal in the file. rounded: of these, float tensors whose type in the file is
    narrower than in the model and not exact. pruned: weights the mask prunes. pruned_nonzero: of these, those that are
    not 0 in the file."""

    tensors: int = 0
    equal: int = 0
    rounded: int = 0
    pruned: int = 0
    pruned_nonzero: int = 0
    masked_weights: int = 0
    masked_bytes: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences and not self.pruned_nonzero

    @property
    def first_difference(self) -> str:
        """One line for an error message."""
        if self.differences:
            return f"{self.differences[0].name}: {self.differences[0].what}"
        return f"{self.pruned_nonzero} pruned weights are not 0" if self.pruned_nonzero else "no difference"

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_gguf(model: str | Path, file: str | Path) -> VerifyReport:
    """Compares every tensor and the metadata that both have. Raises a GGUFError or CheckpointError only where one of
    them cannot be read; a difference is a line in the report."""
    folder = ModelFolder(model)
    architecture = find_architecture(folder.config, folder.path)
    config = read_config(folder.path, architecture)
    read = GGUFFile(file)
    found = sources(folder, architecture, config)
    report = VerifyReport(tensors=len(found))
    named = read.metadata.get("general.architecture")
    if named != architecture.name:
        report.differences.append(
            Difference("general.architecture", f"{named!r} in the file, {architecture.name!r} in the model")
        )
    for key, value, kind in model_entries(folder, architecture, config):
        there = read.metadata.get(key)
        if kind == "float32" and isinstance(there, float):
            same = np.float32(there) == np.float32(value)
        else:
            same = there == value
        if not same:
            report.differences.append(Difference(key, f"{there!r} in the file, {value!r} in the model"))
    for name in sorted(set(read.tensors) - {source.name for source in found}):
        report.differences.append(Difference(name, "is in the file but not in the model"))
    for source in track(found, "comparing the tensors"):
        _compare(folder, read, source, report)
    return report


def _compare(folder: ModelFolder, read: GGUFFile, source: Source, report: VerifyReport) -> None:
    if source.name not in read.tensors:
        report.differences.append(Difference(source.name, "is missing in the file"))
        return
    try:
        kind = read.kind(source.name)
    except GGUFError as error:
        report.differences.append(Difference(source.name, str(error)))
        return
    expected = source.float_weight(folder) if source.module is None else source.quantized(folder).dequantize()
    shape = read.tensors[source.name].shape
    if tuple(expected.shape) != shape:
        report.differences.append(
            Difference(source.name, f"is {shape} in the file, {tuple(expected.shape)} in the model")
        )
        return
    wrong, largest, rounded = 0, 0.0, False
    for rows, there in _parts(read, source.name, shape):
        part = expected[rows]
        wanted = _as_stored(part, kind, source)
        rounded = rounded or (source.module is None and not torch.equal(wanted, part.to(torch.float32)))
        unequal = wanted.view(torch.int32) != there.view(torch.int32)
        if bool(unequal.any()):
            wrong += int(unequal.sum())
            gap = float((wanted - there)[unequal].abs().max())
            largest = math.inf if math.isnan(gap) else max(largest, gap)
    if wrong:
        what = f"{wrong} of {expected.numel()} weights differ, by {largest:g} at most"
        report.differences.append(Difference(source.name, what, largest))
    else:
        report.equal += 1
        report.rounded += rounded
    del expected
    mask = source.mask(folder)
    if mask is not None:
        report.pruned += int((~mask).sum())
        report.masked_weights += mask.numel()
        report.masked_bytes += shape[0] * row_bytes(shape[1], kind)
        for rows, there in _parts(read, source.name, shape):
            report.pruned_nonzero += int((there[~mask[rows]] != 0).sum())


def _parts(read: GGUFFile, name: str, shape: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a tensor at a time, float32, in the shape that the model has them."""
    for rows in row_slices(shape):
        part = read.dequantize(name, rows if len(shape) > 1 else slice(None))
        yield rows, torch.from_numpy(part.reshape(-1) if len(shape) == 1 else part)


def _as_stored(part: Tensor, kind: TensorType, source: Source) -> Tensor:
    """float32: what the file should hold."""
    if source.module is not None or kind.is_block:
        return part.to(torch.float32)
    return part.to(TORCH_TYPES[kind]).to(torch.float32)
