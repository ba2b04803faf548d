"""Which tensor of a checkpoint stands where in the file, by the table of its architecture.

One row of input and output, of an INT4 folder of a Llama:

    model.layers.3.self_attn.q_proj.weight_packed → PlacedTensor(
        name="blk.3.attn_q.weight", module="model.layers.3.self_attn.q_proj", order=<rows in rotary order>, …)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gguf_ext.arch import Architecture, Config, Rule
from gguf_ext.errors import ScaleRangeError, UnmappedTensorError, UnsupportedArchitectureError
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.source import WeightSource
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import QuantizedWeight


@dataclass(frozen=True)
class PlacedTensor:
    """One tensor of the file and where it comes from.

    name: in the file.
    tensor: its name in the checkpoint, "" for a constant.
    owner: the module as the model names it, which is how masks are named (a checkpoint of the bare body lacks the first
        part of the name).
    module: its name in the checkpoint where it is INT4, else None.
    transposed: whether the float tensor is [in, out].
    add: added to the weight.
    order: int64 [out], the row of the checkpoint in each row of the file; None where rows stay.
    constant: the tensor itself, where it stands in no checkpoint.
    """

    name: str
    tensor: str
    owner: str = ""
    module: str | None = None
    transposed: bool = False
    add: float = 0.0
    order: Tensor | None = None
    constant: Tensor | None = None

    @property
    def is_weight(self) -> bool:
        return self.constant is None and self.name.endswith(".weight")

    def quantized(self, source: WeightSource) -> QuantizedWeight:
        """Codes, scales and zero points in the order of the file. Raises ScaleRangeError."""
        assert self.module is not None
        try:
            weight = source.quantized(self.module)
        except GridError as error:
            if "outside the exact range" not in str(error):
                raise
            raise ScaleRangeError(str(error)) from None
        grid = weight.grid if self.order is None else weight.grid.take(self.order)
        return QuantizedWeight(self.reorder(weight.codes), grid)

    def float_weight(self, folder: ModelFolder) -> Tensor:
        """The float tensor as the file means it, in its own dtype, or float32 where something is added."""
        tensor = folder.tensor(self.tensor) if self.constant is None else self.constant
        if self.transposed:
            tensor = tensor.t()
        if self.add:
            tensor = tensor.to(torch.float32) + self.add
        return self.reorder(tensor)

    def weight(self, folder: ModelFolder) -> Tensor | QuantizedWeight:
        """Whichever of both the tensor is."""
        return self.float_weight(folder) if self.module is None else self.quantized(folder)

    def mask(self, source: WeightSource) -> Tensor | None:
        """bool [out, in] in the order of the file, True = kept; None where there is none."""
        mask = source.mask(self.owner) if self.is_weight else None
        return None if mask is None else self.reorder(mask)

    def reorder(self, part: Tensor) -> Tensor:
        """Codes, scales, zero points, floats, biases and masks all have `out` first: one rule for all. Raises
        CheckpointError for rows that are not those of the configuration."""
        if self.order is None:
            return part

        if len(part) != len(self.order):
            raise CheckpointError(
                f"{self.tensor} has {len(part)} rows, {len(self.order)} by the heads in config.json: "
                "copy the whole model again"
            )
        return part[self.order]


class Part(NamedTuple):
    """One tensor of a checkpoint.

    name: its own.
    module: the module that it belongs to.
    kind: "weight" (also for each packed part of an INT4 weight), "bias", or another last part of the name.
    int4: whether the weight of the module is INT4.
    """

    name: str
    module: str
    kind: str
    int4: bool

    @property
    def int4_module(self) -> str | None:
        """The module, where this is (a part of) its INT4 weight."""
        return self.module if self.int4 and self.kind == "weight" else None

    def is_spare(self, folder: ModelFolder) -> bool:
        """Whether it is a bias of zeros at an INT4 layer: AutoGPTQ gives each of its layers one, whether the model has
        biases or not."""
        return self.int4 and self.kind == "bias" and not bool(folder.tensor(self.name).any())


def parts_of(folder: ModelFolder) -> Iterator[Part]:
    """Every tensor of a checkpoint, by name: `….q_proj.weight_packed` → module `….q_proj`, kind "weight", INT4."""
    packed = {part: module for module in folder.int4.modules for part in folder.parts(module)}
    quantized = set(packed.values())
    for name in sorted(folder.tensor_names):
        module, _, kind = name.rpartition(".")
        if name in packed:
            module, kind = packed[name], "weight"
        yield Part(name, module, kind, module in quantized)


class Place(NamedTuple):
    """Where a table puts a module. rule: None where it has none. layer: None outside of the layers. owner: the module
    as the model names it."""

    rule: Rule | None
    layer: int | None
    owner: str

    def holds(self, kind: str) -> bool:
        """Whether the file has such a tensor of the module."""
        return self.rule is not None and (kind == "weight" or (kind == "bias" and self.rule.bias != "none"))


def find_place(architecture: Architecture, module: str) -> Place:
    """The place of a module of the checkpoint, whose name may lack its first part."""
    for name in (module, *(f"{body}.{module}" for body in sorted(architecture.bodies))):
        for rule in architecture.rules:
            if found := rule.pattern.fullmatch(name):
                layer = found.groupdict().get("i")
                return Place(rule, None if layer is None else int(layer), name)
    return Place(None, None, module)


def place_tensors(folder: ModelFolder, architecture: Architecture, config: Config) -> list[PlacedTensor]:
    """Every tensor of the file, in the order of the table, layer by layer. Raises UnmappedTensorError for a tensor
    without a place, and for a tensor that is missing."""
    table = _Table(folder, architecture, config)
    placed: dict[str, PlacedTensor] = {}

    for part in parts_of(folder):
        place = find_place(architecture, part.module)
        if not table.skipped(part, place):
            tensor = table.placed(part, place)
            placed[tensor.name] = tensor

    return table.complete(placed)


class _Table:
    """The table of an architecture, for one checkpoint. Arguments as of `place_tensors`."""

    def __init__(self, folder: ModelFolder, architecture: Architecture, config: Config):
        self.folder, self.architecture, self.config = folder, architecture, config
        self.layers = int(config["num_hidden_layers"])
        self.tied = is_tied(folder, architecture, config)
        if architecture.head == "tied" and not self.tied:
            raise UnsupportedArchitectureError(
                f"the head of model {folder.path} differs from its embedding, which llama.cpp's {architecture.name} "
                "takes for the head: leave both out of the adapter"
            )

    def skipped(self, part: Part, place: Place) -> bool:
        """Whether the file does without the tensor: buffers, spare biases, and the head that is the embedding, which
        llama.cpp takes itself."""
        rule = place.rule
        if any(re.fullmatch(pattern, part.name) for pattern in self.architecture.ignored):
            return True
        if (rule is None or rule.bias != "required") and part.is_spare(self.folder):
            return True
        return self.tied and rule is not None and rule.source == "lm_head" and place.holds(part.kind)

    def placed(self, part: Part, place: Place) -> PlacedTensor:
        """The tensor of the file that this one is (a part of). Raises UnmappedTensorError."""
        rule, layer = place.rule, place.layer
        if rule is None or not place.holds(part.kind) or (layer is not None and layer >= self.layers):
            raise UnmappedTensorError(
                f"tensor {part.name} of model {self.folder.path} has no place in a {self.architecture.name} file: "
                f"export a model without it, or report the architecture"
            )

        is_weight = part.kind == "weight"
        return PlacedTensor(
            name=f"{self.architecture.target(rule).format(i=layer)}.{part.kind}",
            tensor=f"{part.module}.{part.kind}",
            owner=place.owner,
            module=part.int4_module,
            transposed=rule.transposed and is_weight and not part.int4,  # INT4 is always [out, in]
            add=rule.add if is_weight else 0.0,
            order=None if rule.rows is None else rule.rows(self.config),
        )

    def complete(self, placed: dict[str, PlacedTensor]) -> list[PlacedTensor]:
        """The constants and all that was placed, in the order of the file. Raises UnmappedTensorError for what the file
        needs and the checkpoint lacks."""
        expected = list(self._expected())
        missing = [name for name, needed in expected if needed and name not in placed]
        if not self.tied and "output.weight" not in placed:
            missing.append("output.weight")
        if missing:
            raise UnmappedTensorError(
                f"model {self.folder.path} has no tensor for {missing[0]} ({len(missing)} missing): copy the whole "
                "model again"
            )

        constants = self.architecture.constants(self.config)
        found = [PlacedTensor(name, "", constant=value) for name, value in constants.items()]
        return found + [placed[name] for name, _ in expected if name in placed]

    def _expected(self) -> Iterator[tuple[str, bool]]:
        """Every name that the file may have, and whether it must."""
        rules = self.architecture.rules
        places = [(rule, 0) for rule in rules if "{i}" not in rule.source]
        places += [(rule, i) for i in range(self.layers) for rule in rules if "{i}" in rule.source]

        for rule, layer in places:
            name = self.architecture.target(rule).format(i=layer)
            yield f"{name}.weight", rule.required
            if rule.bias != "none":
                yield f"{name}.bias", rule.bias == "required"


def is_tied(folder: ModelFolder, architecture: Architecture, config: Config) -> bool:
    """Whether the head is the embedding: as transformers has it, not where the checkpoint holds two that differ, such
    as a merge into one of them leaves, whatever the configuration says."""
    if not config.get("tie_word_embeddings"):
        return False

    stored: dict[str, list[Part]] = {"output": [], "token_embd": []}
    for part in parts_of(folder):
        rule = find_place(architecture, part.module).rule
        if rule is not None and (target := architecture.target(rule)) in stored:
            stored[target].append(part)
    if not stored["output"] or not stored["token_embd"]:
        return True

    found = [*stored["output"], *stored["token_embd"]]
    if any(part.int4_module for part in found):
        return False
    head, embedding = (folder.tensor(part.name) for part in found)
    return torch.equal(head, embedding)


def spare_biases(folder: ModelFolder, placed: list[PlacedTensor]) -> list[str]:
    """The biases of INT4 layers that `place_tensors` left out."""
    biases = {part.name for part in parts_of(folder) if part.int4 and part.kind == "bias"}
    return sorted(biases - {tensor.tensor for tensor in placed})
