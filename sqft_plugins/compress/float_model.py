"""The float model that is to be compressed, and what is checked of it before the long work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.load import load_tokenizer
from sqft_plugins.compress.blocks import check_tokens
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.fused import check_reachable, count_of, fused_weights, left_out
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.names import select
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import say, track
from sqft_plugins.structure import Structure, structure_of


@dataclass(frozen=True)
class Calibration:
    """texts: a text file, a JSONL, the name of a data set, or None for the built-in text. `sequences` of `length`
    tokens."""

    texts: str | Path | None = None
    sequences: int = 32
    length: int = 128

    def tokens(self, model: Path, statistic: Statistic, skeleton: Skeleton) -> Tensor | None:
        """The batch, int64 [sequences, length]; None for a method that looks at no inputs. Raises SQFTError, also for
        the tokenizer of another model."""
        if statistic == "none":
            return None
        tokens = token_batch(calibration_texts(self.texts), load_tokenizer(model), self.sequences, self.length)
        return check_tokens(skeleton.model, tokens)


class FloatModel:
    """A float model to be compressed.

    folder: where its weights are. skeleton: the model without them. structure: its linear layers. modules: name →
    (out, in) of those to compress. fused: name → shape of the weights that are in no linear layer and not excluded.

    Raises SQFTError for a quantized model and for an `exclude` that matches nothing.
    """

    opens: type[ModelFolder] = ModelFolder

    def __init__(self, model: str | Path, exclude: Sequence[str] = ()):
        self.name = str(model)
        self.path = local_folder(model)
        self.folder = self.opens(self.path)
        if self.folder.files and self.folder.grid is not None:
            raise SQFTError(f"model {model} is {self.folder.grid.label} already: give the float model it was made from")
        self.skeleton = Skeleton(self.folder)
        self.structure: Structure = structure_of(self.skeleton.model)

        fused = fused_weights(self.skeleton.model)
        excluded = set(select(exclude, [*self.structure.shapes, *fused], "--exclude"))
        self.fused = {name: shape for name, shape in fused.items() if name not in excluded}
        self.modules = {m: shape for m, shape in self.structure.shapes.items() if m not in excluded}
        if not self.modules:
            raise SQFTError(f"--exclude {' '.join(exclude)} leaves no layer to work on: exclude less")

    def check_reachable(self, asked: object) -> None:
        """Raises SQFTError where the blocks have weights that no pruner reaches and `exclude` does not name."""
        check_reachable(self.fused, self.linear_weights, asked, "--exclude")

    def say_left_out(self, what: str) -> int:
        """Logs what of the blocks stays as it is, in numbers → how many weights these are."""
        if self.fused:
            say(f"{self.name}: {left_out(self.fused, self.linear_weights)}: {what}")
        return count_of(self.fused)

    @property
    def linear_weights(self) -> int:
        return sum(rows * columns for rows, columns in self.structure.shapes.values())

    def stored(self, module: str) -> str:
        """The name of the module's weight in the folder's files."""
        return self.skeleton.names[f"{module}.weight"]

    def as_stored(self, module: str, weight: Tensor) -> Tensor:
        """A weight [out, in] in the layout of the files: that of a Conv1D is [in, out] there."""
        return weight.t().contiguous() if module in self.structure.transposed else weight

    @property
    def outside(self) -> list[str]:
        """The linear modules that are left alone: those outside the blocks and those that are excluded."""
        return sorted({*self.structure.outside, *(self.structure.shapes.keys() - self.modules.keys())})

    @property
    def renamed(self) -> dict[str, str]:
        """Tensor name in the files → parameter name in the model, where they differ."""
        first: dict[str, str] = {}
        for parameter, stored in self.skeleton.names.items():
            first.setdefault(stored, parameter)
        return first

    def check(self, more: Callable[[str, Tensor], None] | None = None) -> None:
        """Reads every weight once. Raises GridError, naming the tensor, for NaN and infinity.

        more: called with each module and its weight [out, in].
        """
        for module in track(list(self.modules), "check"):
            weight = self.folder.weight(module)
            if not bool(torch.isfinite(weight).all()):
                raise GridError(f"tensor {module}.weight holds NaN or infinity: copy or convert the model again")
            if more is not None:
                more(module, weight)


def hash_of(tokens: Tensor | None) -> str | None:
    """SHA-256 of a calibration batch."""
    return None if tokens is None else hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()


def describe_calibration(calibration: Calibration, tokens: Tensor | None) -> dict[str, Any] | None:
    """For the report: where the text came from and how much of it was used."""
    return None if tokens is None else {"source": str(calibration.texts or "built-in"), "tokens": list(tokens.shape)}
