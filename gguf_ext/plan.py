"""Which tensor of the model stands where in the file, with what type: decided and checked before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf_ext.arch import Architecture, Config, Rule, rotary_order
from gguf_ext.blocks import TensorType, row_bytes
from gguf_ext.errors import UnmappedTensorError
from gguf_ext.transcode import block_bytes, block_type, float_bytes, matrix_type, row_slices
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.progress import track

INT4_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


@dataclass(frozen=True)
class Source:
    """One tensor of the file and where it comes from.

    name: in the file. tensor: its name in the checkpoint, "" for a constant. module: set where it is INT4. add: added
    to the weight. order: int64 [out], the row of the checkpoint in each row of the file. constant: the tensor itself.
    """

    name: str
    tensor: str
    module: str | None = None
    add: float = 0.0
    order: Tensor | None = None
    constant: Tensor | None = None

    def quantized(self, folder: ModelFolder) -> QuantizedWeight:
        """Codes, scales and zero points in the order of the file."""
        assert self.module is not None
        weight = folder.quantized(self.module)
        return QuantizedWeight(*(self.reorder(part) for part in weight))

    def float_weight(self, folder: ModelFolder) -> Tensor:
        """The float tensor as the file means it, in its own dtype, or float32 where something is added."""
        tensor = folder.tensor(self.tensor) if self.constant is None else self.constant
        if self.add:
            tensor = tensor.to(torch.float32) + self.add
        return self.reorder(tensor)

    def mask(self, folder: ModelFolder) -> Tensor | None:
        """bool [out, in] in the order of the file, True = kept; None where there is none."""
        mask = folder.mask(self.tensor.removesuffix(".weight")) if self.tensor.endswith(".weight") else None
        return None if mask is None else self.reorder(mask)

    def reorder(self, part: Tensor) -> Tensor:
        """Codes, scales, zero points, floats, biases and masks all have `out` first: one rule for all."""
        return part if self.order is None else part[self.order]


@dataclass(frozen=True)
class Planned:
    """A tensor with its type and shape ([out, in] or [n])."""

    source: Source
    type: TensorType
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def bytes(self) -> int:
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows * row_bytes(self.shape[-1], self.type)

    def pieces(self, folder: ModelFolder) -> Iterator[NDArray[np.uint8]]:
        """The raw bytes, [rows, row_bytes] a piece, so that a large embedding needs no second copy in memory."""
        if self.type.is_block:
            yield block_bytes(self.source.quantized(folder), self.type)
            return
        tensor = self.source.float_weight(folder)
        for rows in row_slices(self.shape):
            yield float_bytes(tensor[rows], self.type)


def sources(folder: ModelFolder, architecture: Architecture, config: Config) -> list[Source]:
    """Every tensor of the file, in the order of the table, layer by layer. Raises UnmappedTensorError, naming what has
    no place or is missing."""
    layers = int(config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings"))
    mapped: dict[str, Source] = {}
    quantized = set(folder.quantized_modules)
    for name in sorted(folder.files):
        module, _, part = name.rpartition(".")
        if any(re.fullmatch(pattern, name) for pattern in architecture.ignored):
            continue
        if part in INT4_PARTS and module in quantized:
            part = "weight"
        rule, layer = _match(architecture, module)
        if rule is None or part not in ("weight", "bias") or (layer is not None and layer >= layers):
            raise UnmappedTensorError(
                f"tensor {name} of model {folder.path} has no place in a {architecture.name} file: "
                f"export a model without it, or report the architecture"
            )
        if tied and rule.source == "lm_head":
            continue  # a copy of the embedding: llama.cpp takes the embedding itself
        target = f"{rule.target.format(i=layer)}.{part}"
        mapped[target] = Source(
            name=target,
            tensor=f"{module}.{part}",
            module=module if part == "weight" and module in quantized else None,
            add=rule.add if part == "weight" else 0.0,
            order=_order(rule, config),
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


def plan(folder: ModelFolder, found: list[Source], float_type: str = "auto") -> list[Planned]:
    """Reads every tensor once, decides its type and raises for whatever cannot be held exactly."""
    planned = []
    for source in track(found, "checking the weights"):
        label = source.tensor or source.name
        if source.module is not None:
            weight = source.quantized(folder)
            planned.append(Planned(source, block_type(weight, label), tuple(weight.codes.shape)))
        else:
            tensor = source.float_weight(folder)
            kind = TensorType.F32 if source.constant is not None else matrix_type(tensor, label, float_type)
            planned.append(Planned(source, kind, tuple(tensor.shape)))
    return planned


def _match(architecture: Architecture, module: str) -> tuple[Rule | None, int | None]:
    for rule in architecture.rules:
        if found := rule.pattern.fullmatch(module):
            layer = found.groupdict().get("i")
            return rule, None if layer is None else int(layer)
    return None, None


def _targets(architecture: Architecture, layers: int) -> Iterator[tuple[str, bool]]:
    """Every name that the file may have, and whether it must."""
    for rule in architecture.rules:
        if "{i}" not in rule.source:
            yield f"{rule.target}.weight", rule.required
            yield f"{rule.target}.bias", False
    for layer in range(layers):
        for rule in architecture.rules:
            if "{i}" in rule.source:
                yield f"{rule.target.format(i=layer)}.weight", rule.required
                yield f"{rule.target.format(i=layer)}.bias", False


def _order(rule: Rule, config: Config) -> Tensor | None:
    if rule.heads is None:
        return None
    heads = int(config[rule.heads])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return rotary_order(heads * int(head), heads)
