"""`sqft verify`: whether a GGUF file holds the very weights and tokens of a model, and every pruned weight is 0.

The file is read by our own reader and dequantized by our own code, neither of which wrote it. Equal means equal bits:
an INT4 weight is compared with fp32 `scale * (code - zero_point)`, a float one with the model's. What is not equal only
because it was rounded to the type it has in the file (scales to fp16, floats to a narrower type) is kept apart from
what is different.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gguf_ext.blocks import row_bytes
from gguf_ext.errors import GGUFError
from gguf_ext.hyperparameters.compare import compare_entries
from gguf_ext.hyperparameters.config import counterparts
from gguf_ext.layout import Layout, find_layout
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.tokenizer import compare_tokenizer
from gguf_ext.write.metadata import EXACT
from gguf_ext.write.tensors import PlacedTensor
from gguf_ext.write.transcode import largest_gap, row_slices, shape_of, stored
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.mask import lost_zeros
from sqft_plugins.progress import track

FORMULA = 1e-6
"""How far, relative, two float32 results of one formula may be apart."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not equal.

    name: a tensor or a metadata key.
    what: a line that says in what they differ.
    largest: the largest |difference| of a weight, 0 where it is no weight.
    """

    name: str
    what: str
    largest: float = 0.0


@dataclass
class VerifyReport:
    """What `verify_gguf` found.

    tensors: in the model.
    equal: of these, those whose bits are equal in the file, but for rounding to the type there.
    rounded: of the equal ones, those that the type does round.
    largest_error: the largest |difference| of a weight that rounding makes.
    pruned: weights that the mask prunes.
    pruned_nonzero: of these, those that are not 0 in the file.
    masked_weights, masked_bytes: weights with a mask, and what they take in the file.
    tokenizer: "equal", "equal, but …", "different" or "not compared: why".
    differences: all that is not equal, but for rounding.
    unchecked: fields of config.json and keys of the file that were compared with nothing, which happens to a model
        without a table only.
    """

    tensors: int = 0
    equal: int = 0
    rounded: int = 0
    largest_error: float = 0.0
    pruned: int = 0
    pruned_nonzero: int = 0
    masked_weights: int = 0
    masked_bytes: int = 0
    tokenizer: str = "not compared"
    differences: list[Difference] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No difference but of rounding."""
        return not self.differences and not self.pruned_nonzero

    @property
    def exact(self) -> bool:
        """No difference at all."""
        return self.ok and not self.rounded

    @property
    def first_difference(self) -> str:
        """One line for an error message."""
        if self.differences:
            return f"{self.differences[0].name}: {self.differences[0].what}"
        return f"{self.pruned_nonzero} pruned weights are not 0" if self.pruned_nonzero else "no difference"

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "exact": self.exact, **asdict(self)}


def verify_gguf(model: str | Path, file: str | Path) -> VerifyReport:
    """Compares every tensor, the metadata that both have, and the tokenizers; of a file in parts `file` is the first.
    Raises a GGUFError or CheckpointError only where one of them cannot be read; a difference is a line in the report.

    Of a model without a table the file itself says which tensor stands where (see `gguf_ext.template`).
    """
    folder, read = ModelFolder(model), GGUFFile(file)
    layout = find_layout(folder, read)
    report = compare(folder, layout, read)
    report.tokenizer, found = compare_tokenizer(folder, layout, read)
    report.differences += [Difference(*item) for item in found]
    return report


def compare(folder: ModelFolder, layout: Layout, read: GGUFFile) -> VerifyReport:
    """What `verify_gguf` reports of tensors and metadata, of a model whose layout is known."""
    report = VerifyReport(tensors=len(layout.tensors))

    # metadata
    named = read.metadata.get("general.architecture")
    if named != layout.architecture:
        report.differences.append(
            Difference("general.architecture", f"{named!r} in the file, {layout.architecture!r} in the model")
        )
    other = {} if layout.config is None else counterparts(layout.config)
    found = compare_entries(layout.architecture, layout.entries, read, other)
    report.differences += [Difference(*item) for item in (*found, *layout.differences)]
    report.unchecked = layout.unchecked

    # tensors
    for name in sorted(set(read.tensors) - {tensor.name for tensor in layout.tensors}):
        report.differences.append(Difference(name, "is in the file but not in the model"))
    for tensor in track(layout.tensors, "comparing the tensors"):
        _compare(folder, read, tensor, report)

    if read.metadata.get(EXACT) is True and report.rounded:
        report.differences.append(Difference(EXACT, f"True in the file, but {report.rounded} tensors are rounded"))
    return report


def _compare(folder: ModelFolder, read: GGUFFile, tensor: PlacedTensor, report: VerifyReport) -> None:
    """Adds what is found of one tensor to the report."""

    def differs(what: str, largest: float = 0.0) -> None:
        report.differences.append(Difference(tensor.name, what, largest))

    # is there such a tensor, of a known type and the right shape?
    if tensor.name not in read.tensors:
        return differs("is missing in the file")
    try:
        kind = read.kind(tensor.name)
    except GGUFError as error:
        return differs(str(error))
    weight = tensor.weight(folder)
    shape = read.tensors[tensor.name].shape
    if shape_of(weight) != shape:
        return differs(f"is {shape} in the file, {shape_of(weight)} in the model")

    # every weight, bit for bit, and every pruned one 0
    mask = tensor.mask(folder)
    wrong, largest, rounded = 0, 0.0, 0.0
    for rows, there in _parts(read, tensor.name, shape):
        exact, held = stored(weight, kind, rows)
        unequal = held.view(torch.int32) != there.view(torch.int32)
        if tensor.constant is not None:  # of a formula, which others compute in their own precision
            unequal &= ~torch.isclose(held, there, rtol=FORMULA, atol=0)
        if bool(unequal.any()):
            wrong += int(unequal.sum())
            largest = max(largest, largest_gap(exact[unequal], there[unequal]))
        elif held is not exact:
            rounded = max(rounded, largest_gap(exact, held))
        if mask is not None:
            report.pruned_nonzero += lost_zeros(there, mask[rows])

    if wrong:
        differs(f"{wrong} of {math.prod(shape)} weights differ, by {largest:g} at most", largest)
    else:
        report.equal += 1
        report.rounded += rounded > 0
        report.largest_error = max(report.largest_error, rounded)

    if mask is not None:
        report.pruned += int((~mask).sum())
        report.masked_weights += mask.numel()
        report.masked_bytes += shape[0] * row_bytes(shape[1], kind)
    return None


def _parts(read: GGUFFile, name: str, shape: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a tensor at a time, float32, in the shape that the model has them."""
    for rows in row_slices(shape):
        part = read.dequantize(name, rows if len(shape) > 1 else slice(None))
        yield rows, torch.from_numpy(part.reshape(-1) if len(shape) == 1 else part)
