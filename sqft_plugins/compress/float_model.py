"""The float model that is to be compressed, and what is checked of it before the long work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.load import load_tokenizer
from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.compress.blocks import check_tokens
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.coverage import Coverage, coverage_of
from sqft_plugins.compress.experts import find_routers, names_of, stored_experts, weights_inside
from sqft_plugins.compress.fused import fused_weights
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.grid import PER_CHANNEL, group_width
from sqft_plugins.names import select
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import say, track
from sqft_plugins.structure import Structure, structure_of

UNDIVIDED = 0.05
"""The share of the weights that may stay float because the group does not divide them."""


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

    folder: where its weights are. skeleton: the model without them. structure: its linear layers. experts: name in the
    files → layer of an expert, where these hold them one by one. modules: name → (out, in) of the layers to compress,
    experts among them and routers not. fused: name → shape of the weights that are in neither and not excluded.

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

        self._exclude = exclude
        whole = self.skeleton.model
        fused = fused_weights(whole)
        self.experts = stored_experts(whole, self.skeleton.stored)
        shapes = self.structure.shapes | {module: layer.shape for module, layer in self.experts.items()}
        names = dict.fromkeys(name for module in shapes for name in names_of(module, self.experts.get(module)))
        excluded = {
            *select(exclude, [*names, *(fused.keys() - names), *self.structure.outside], "--exclude"),
            *find_routers(whole),
        }

        reached = {layer.whole for layer in self.experts.values()}
        self.fused = {name: shape for name, shape in fused.items() if name not in excluded | reached}
        self.modules = {
            module: shape
            for module, shape in shapes.items()
            if excluded.isdisjoint(names_of(module, self.experts.get(module)))
        }
        if not self.modules:
            raise SQFTError(f"--exclude {' '.join(exclude)} leaves no layer to work on: exclude less")

    @property
    def coverage(self) -> Coverage:
        """What part of the model's weights `modules` are."""
        experts = (layer for module, layer in self.experts.items() if module in self.modules)
        return coverage_of(self.skeleton.model, self.modules, weights_inside(experts))

    def check_coverage(self, what: str) -> None:
        """Raises SQFTError where most of the weights would be left out without a word, since `exclude` names none of
        them. what: the step, such as "pruning"."""
        if not self._exclude:
            self.coverage.check(what, self.name, "--exclude")

    def leave_undivided(self, group_size: int) -> None:
        """Takes out of `modules` those whose `in` the group does not divide, and says so in numbers: a table of a
        mechanism, such as AltUp's of Gemma 3n, is a few columns wide. Raises GridError where they are more than
        `UNDIVIDED` of the weights: then the group does not suit the model."""
        odd = [m for m, (_, columns) in self.modules.items() if group_size > 0 and columns % group_size]
        sizes = {module: rows * columns for module, (rows, columns) in self.modules.items()}
        count = sum(sizes[module] for module in odd)
        if count > UNDIVIDED * sum(sizes.values()) or group_size < PER_CHANNEL:
            odd = []  # the first of them is refused by name
        for module in odd:
            del self.modules[module]
        for module, (_, columns) in self.modules.items():
            group_width(columns, group_size, module)
        if odd:
            kinds = ", ".join(dict.fromkeys(self.structure.kind(module) for module in odd))
            say(
                f"{self.name}: group_size={group_size} does not divide the inputs of {len(odd)} small layers "
                f"({kinds}): they stay float, {count:,} weights or {count / sum(sizes.values()):.2%}"
            )

    def stored(self, module: str) -> str:
        """The tensor of the folder's files that holds the module's weight, or the first of several."""
        return self._sources(module)[0]

    def _sources(self, module: str) -> list[str]:
        name = f"{module}.weight"
        return [name] if module in self.experts else self.skeleton.sources(name)

    def spec(self, module: str) -> TensorSpec:
        """dtype and shape of the module's weight, as its parameter has it."""
        dtype = self.folder.spec(self.stored(module)).dtype
        if module in self.experts:
            return TensorSpec(dtype, self.modules[module])
        return TensorSpec(dtype, tuple(self.skeleton.model.get_parameter(f"{module}.weight").shape))

    def written(self, module: str) -> str:
        """What the module's float weight is called in a folder made of this one: as in its own files, so that whatever
        opens those opens it; by the model's own name where they lack its prefix, or join weights."""
        name = f"{module}.weight"
        if module in self.experts:
            return name
        stored = self.skeleton.stored
        return stored.sources(name)[0] if stored.is_one(name) and stored.is_renamed(name) else name

    def changed(self, written: Callable[[str], Mapping[str, TensorSpec]]) -> dict[str, dict[str, TensorSpec]]:
        """Tensor of the folder's files → what takes its place, `written(module)` of each of its modules. Raises
        SQFTError where a tensor holds a layer that is left out beside one that is not."""
        stored = self.skeleton.stored
        result: dict[str, dict[str, TensorSpec]] = {}
        for module in self.modules:
            sources = self._sources(module)
            for source in sources:
                result.setdefault(source, {})
                for other in () if module in self.experts else stored.parameters(source):
                    if other.removesuffix(".weight") not in self.modules:
                        raise SQFTError(
                            f"tensor {source} holds {other} beside {module}, and only one of them is left out: "
                            "exclude both, or none"
                        )
            result[sources[0]].update(written(module))
        return result

    def as_stored(self, module: str, weight: Tensor) -> Tensor:
        """A weight [out, in] in the layout of the files: that of a Conv1D is [in, out] there."""
        return weight.t().contiguous() if module in self.structure.transposed else weight

    @property
    def outside(self) -> list[str]:
        """The linear modules that are left alone: those outside the blocks and those that are excluded."""
        layers = self.structure.shapes.keys() | self.experts.keys()
        return sorted({*self.structure.outside, *(layers - self.modules.keys())})

    @property
    def renamed(self) -> dict[str, str]:
        """Tensor name in the files → parameter name in the model, where the files lack the prefix of the body or have
        it where the model has none. Names of the family's own stay."""
        stored = self.skeleton.stored
        whole = ((stored.sources(name)[0], name) for name in stored if stored.is_one(name))
        return {source: name for source, name in whole if source != name and not stored.is_renamed(name)}

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
