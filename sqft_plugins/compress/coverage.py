"""How much of a model a step touches, from shapes alone.

The measure are the linear weights of the language model: its linear layers and the parameters that are matrices in no
linear layer (experts), without embedding and output head. What a model has beside its language model (the tower of a
model that sees images, its projector) is left on purpose; it is said, and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from sqft_plugins.compress.fused import ends_of, fused_weights
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import beside_the_text, find_blocks, is_linear

LEAST = 0.8
"""The share of the linear weights that a step must touch, where the user names nothing that is left out."""
SHOWN = 4


@dataclass(frozen=True)
class Coverage:
    """Numbers of weights. touched: by the step. left: kind of layer, such as "mlp.experts.gate_up_proj" → of the other
    linear weights. beside: module → of what is no part of the language model. model: all, each tied one once."""

    touched: int
    left: Mapping[str, int]
    beside: Mapping[str, int]
    model: int

    @property
    def linear(self) -> int:
        return self.touched + sum(self.left.values())

    @property
    def share(self) -> float:
        """Of the linear weights."""
        return self.touched / max(self.linear, 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: touched, linear, share, left, beside, model."""
        return {
            "touched": self.touched,
            "linear": self.linear,
            "share": self.share,
            "left": dict(self.left),
            "beside": dict(self.beside),
            "model": self.model,
        }

    def check(self, what: str, model: object, argument: str) -> None:
        """Raises SQFTError where the step touches less than `LEAST` of the linear weights.

        what: the step, such as "pruning". argument: how the user names what is left out, such as "--exclude".
        """
        if self.share >= LEAST:
            return
        patterns = ends_of(list(self.left))
        remedy = " ".join(f"{argument} {one}" for one in patterns) if argument.startswith("--exclude") else argument
        raise SQFTError(
            f"{what} would touch {self.share:.0%} of the linear weights of {model}: left out are "
            f"{shares_of(self.left, self.linear)}. To do the rest alone, say so: {remedy}"
        )


def coverage_of(
    model: nn.Module, touched: Collection[str], inside: Mapping[str, int] = MappingProxyType({})
) -> Coverage:
    """Of a model in memory or on the device meta. touched: names of linear layers and of fused parameters; inside:
    fused parameter → how many of its weights are touched, of which some experts are."""
    beside = {name: _size(model.get_submodule(name)) for name in beside_the_text(model)}
    sizes = {name: size for name, size in linear_sizes(model).items() if not _within(name, beside)}
    try:
        prefix = f"{find_blocks(model)[0]}."
    except SQFTError:  # no list of equal blocks
        prefix = ""

    chosen, left = set(touched), dict[str, int]()
    for name, size in sizes.items():
        if name not in chosen:
            own = name.removeprefix(prefix).partition(".")[2] if prefix and name.startswith(prefix) else ""
            kind = own or re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
            left[kind] = left.get(kind, 0) + size - inside.get(name, 0)
    left = {kind: size for kind, size in left.items() if size}
    return Coverage(
        sum(size if name in chosen else inside.get(name, 0) for name, size in sizes.items()),
        dict(sorted(left.items(), key=lambda item: -item[1])),
        beside,
        _size(model),
    )


def linear_sizes(model: nn.Module) -> dict[str, int]:
    """Name → weights of every linear layer and every fused parameter, without embedding and output head."""
    aside: set[int] = set()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, name, lambda: None)()
        aside |= {id(parameter) for parameter in module.parameters()} if isinstance(module, nn.Module) else set()
    sizes = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if is_linear(module) and id(module.weight) not in aside
    }
    fused = fused_weights(model, anywhere=True)
    return {**sizes, **{name: model.get_parameter(name).numel() for name in fused}}


def describe(coverage: Mapping[str, Any]) -> str:
    """`Coverage.as_dict` in a line, for a person."""
    text = (
        f"{coverage['share']:.1%} of the linear weights touched, "
        f"{coverage['touched'] / max(coverage['model'], 1):.1%} of the model's {coverage['model'] / 1e6:.1f} M"
    )
    if coverage["left"]:
        text += f"; not touched: {shares_of(coverage['left'], coverage['linear'])}"
    if coverage["beside"]:
        parts = ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in coverage["beside"].items())
        text += f"; left on purpose, no part of the language model: {parts}"
    return text


def shares_of(left: Mapping[str, int], linear: int) -> str:
    """Such as "mlp.experts.gate_up_proj 59 %, mlp.experts.down_proj 30 %"."""
    named = [f"{kind} {size / max(linear, 1):.1%}" for kind, size in list(left.items())[:SHOWN]]
    return ", ".join(named) + (f" and {len(left) - SHOWN} more kinds" if len(left) > SHOWN else "")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _within(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
