"""Which tensor of the model stands where in the file, with what type: decided and checked before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf_ext.arch import Architecture, Config, Rule
from gguf_ext.blocks import TensorType, row_bytes
from gguf_ext.errors import ActOrderError, ScaleRangeError, UnmappedTensorError
from gguf_ext.write.transcode import (
    block_bytes,
    block_type,
    float_bytes,
    float_error,
    matrix_type,
    row_slices,
    step_error,
)
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.progress import track

EMBEDDINGS = ("token_embd.weight", "output.weight")
"""The matrices with a row for each token: the embedding, which is the head too where they are tied, and the head."""


@dataclass(frozen=True)
class Source:
    """One tensor of the file and where it comes from.

    name: in the file. tensor: its name in the checkpoint, "" for a constant. owner: the module as the model names it,
    which is how masks are named (a checkpoint of the bare body lacks the first part of the name). module: its name in
    the checkpoint where it is INT4. transposed: whether the float tensor is [in, out]. add: added to the weight.
    order: int64 [out], the row of the checkpoint in each row of the file. constant: the tensor itself.
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

    def quantized(self, folder: ModelFolder) -> QuantizedWeight:
        """Codes, scales and zero points in the order of the file."""
        assert self.module is not None
        try:
            weight = folder.quantized(self.module)
        except GridError as error:
            if "outside the exact range" not in str(error):
                raise
            raise ScaleRangeError(str(error)) from None
        return QuantizedWeight(*(self.reorder(part) for part in weight))

    def float_weight(self, folder: ModelFolder) -> Tensor:
        """The float tensor as the file means it, in its own dtype, or float32 where something is added."""
        tensor = folder.tensor(self.tensor) if self.constant is None else self.constant
        if self.transposed:
            tensor = tensor.t()
        if self.add:
            tensor = tensor.to(torch.float32) + self.add
        return self.reorder(tensor)

    def mask(self, folder: ModelFolder) -> Tensor | None:
        """bool [out, in] in the order of the file, True = kept; None where there is none."""
        mask = folder.mask(self.owner) if self.is_weight else None
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


@dataclass(frozen=True)
class Planned:
    """A tensor with its type and shape ([out, in] or [n]). error: the largest |difference| that its type makes."""

    source: Source
    type: TensorType
    shape: tuple[int, ...]
    error: float = 0.0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def bytes(self) -> int:
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows * row_bytes(self.shape[-1], self.type)

    def pieces(self, folder: ModelFolder) -> Iterator[NDArray[np.uint8]]:
        """The raw bytes, [rows, row_bytes] a piece, so that a large embedding needs no second copy in memory."""
        if self.source.module is not None:
            yield block_bytes(self.source.quantized(folder), self.type)
            return
        tensor = self.source.float_weight(folder)
        for rows in row_slices(self.shape):
            yield float_bytes(tensor[rows], self.type)


def sources(folder: ModelFolder, architecture: Architecture, config: Config) -> list[Source]:
    """Every tensor of the file, in the order of the table, layer by layer. Raises UnmappedTensorError, naming what has
    no place or is missing."""
    layers = int(config["num_hidden_layers"])
    tied = is_tied(folder, architecture, config)
    mapped: dict[str, Source] = {}
    packed = {part: module for module in folder.int4.modules for part in folder.parts(module)}
    quantized = set(packed.values())
    for name in sorted(folder.tensor_names):
        if any(re.fullmatch(pattern, name) for pattern in architecture.ignored):
            continue
        module, _, part = (packed[name], "", "weight") if name in packed else name.rpartition(".")
        rule, layer, owner = match_rule(architecture, module)
        dispensable = part == "bias" and module in quantized and (rule is None or rule.bias != "required")
        if dispensable and not bool(folder.tensor(name).any()):
            continue  # AutoGPTQ gives each of its layers a bias, of zeros where the model has none
        placed = part == "weight" or (part == "bias" and rule is not None and rule.bias != "none")
        if rule is None or not placed or (layer is not None and layer >= layers):
            raise UnmappedTensorError(
                f"tensor {name} of model {folder.path} has no place in a {architecture.name} file: "
                f"export a model without it, or report the architecture"
            )
        if tied and rule.source == "lm_head":
            continue  # a copy of the embedding: llama.cpp takes the embedding itself
        target = f"{rule.target.format(i=layer)}.{part}"
        is_int4 = part == "weight" and module in quantized
        mapped[target] = Source(
            name=target,
            tensor=f"{module}.{part}",
            owner=owner,
            module=module if is_int4 else None,
            transposed=rule.transposed and part == "weight" and not is_int4,
            add=rule.add if part == "weight" else 0.0,
            order=None if rule.rows is None else rule.rows(config),
        )
    expected = list(_targets(architecture, layers))
    missing = [target for target, needed in expected if needed and target not in mapped]
    if not tied and "output.weight" not in mapped:
        missing.append("output.weight")
    if missing:
        raise UnmappedTensorError(
            f"model {folder.path} has no tensor for {missing[0]} ({len(missing)} missing): copy the whole model again"
        )
    constants = [Source(name, "", constant=value) for name, value in architecture.constants(config).items()]
    return constants + [mapped[target] for target, _ in expected if target in mapped]


def is_tied(folder: ModelFolder, architecture: Architecture, config: Config) -> bool:
    """Whether the head is the embedding: as transformers has it, not where the checkpoint holds two that differ, such
    as a merge into one of them leaves, whatever the configuration says."""
    if not config.get("tie_word_embeddings"):
        return False
    packed = {part: module for module in folder.int4.modules for part in folder.parts(module)}
    places: dict[str, set[str]] = {"output": set(), "token_embd": set()}
    for name in folder.tensor_names:
        rule, _, _ = match_rule(architecture, packed.get(name, name.rpartition(".")[0]))
        if rule is not None and rule.target in places:
            places[rule.target].add(name)
    if not places["output"] or not places["token_embd"]:
        return True
    names = [*places["output"], *places["token_embd"]]
    if any(name in packed for name in names):
        return False
    head, embedding = (folder.tensor(name) for name in names)
    return torch.equal(head, embedding)


def plan(
    folder: ModelFolder,
    found: list[Source],
    float_type: str = "auto",
    embedding_type: str = "auto",
    rounding: str = "refuse",
) -> list[Planned]:
    """Reads every tensor once, decides its type and raises for whatever cannot be held as it was asked for."""
    planned = []
    for source in track(found, "checking the weights"):
        label = source.tensor or source.name
        if source.module is not None:
            weight = source.quantized(folder)
            kind = block_type(weight, label, rounding)
            error = step_error(weight) if rounding == "allow" else 0.0
            planned.append(Planned(source, kind, tuple(weight.codes.shape), error))
            continue
        tensor = source.float_weight(folder)
        if not tensor.numel():
            raise UnmappedTensorError(f"{label} of model {folder.path} is empty, which no file holds: export another")
        wanted, argument = float_type, "--float-type"
        if source.name in EMBEDDINGS and embedding_type != "auto":
            wanted, argument = embedding_type, "--embedding-type"
        kind = TensorType.F32 if source.constant is not None else matrix_type(tensor, label, wanted, argument)
        error = 0.0 if wanted == "auto" else float_error(tensor, kind)
        planned.append(Planned(source, kind, tuple(tensor.shape), error))
    return planned


def check_order(folder: ModelFolder) -> None:
    """Raises ActOrderError for INT4 weights whose columns are ordered by activation."""
    try:
        _ = folder.grid
    except CheckpointError as error:
        groups = ((folder.quantization or {}).get("config_groups") or {}).values()
        act_ordered = any((group.get("weights") or {}).get("actorder") for group in groups)
        if not act_ordered and "by activation" not in str(error):
            raise
        raise ActOrderError(str(error)) from None


def zero_biases(folder: ModelFolder, found: list[Source]) -> list[str]:
    """Biases of the checkpoint that `sources` left out: AutoGPTQ gives its layers one, of zeros."""
    biases = {f"{module}.bias" for module in folder.int4.modules} & set(folder.files)
    return sorted(biases - {source.tensor for source in found})


def match_rule(architecture: Architecture, module: str) -> tuple[Rule | None, int | None, str]:
    """The rule, the layer, and the whole name of the module."""
    for name in (module, *(f"{body}.{module}" for body in sorted(architecture.bodies))):
        for rule in architecture.rules:
            if found := rule.pattern.fullmatch(name):
                layer = found.groupdict().get("i")
                return rule, None if layer is None else int(layer), name
    return None, None, module


def _targets(architecture: Architecture, layers: int) -> Iterator[tuple[str, bool]]:
    """Every name that the file may have, and whether it must."""
    places = [(rule, 0) for rule in architecture.rules if "{i}" not in rule.source]
    places += [(rule, i) for i in range(layers) for rule in architecture.rules if "{i}" in rule.source]
    for rule, layer in places:
        target = rule.target.format(i=layer)
        yield f"{target}.weight", rule.required
        if rule.bias != "none":
            yield f"{target}.bias", rule.bias == "required"
