"""The experts of a mixture as one linear layer each, although transformers keeps those of a block in one parameter.

transformers' classes of experts say themselves how that parameter is laid out (`use_experts_implementation`): gate and
up joined or alone, one behind the other or in turns, [out, in] or turned. An `ExpertLinear` is a view of it, [out, in]:
what is written into the view is what the model computes with. Classes that do not say so (Llama 4, JetMoE, DBRX) have
no expert here, and count as fused weights (fused.py).

Each expert has statistics of its own, of the tokens that the router sends to it. Of an expert that no token of the
calibration text reaches nothing is known: it gets the mean statistic of those of its layer that are reached.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sqft_plugins.checkpoint.stored_names import StoredNames
from sqft_plugins.compress.statistic import InputStatistic
from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import say
from sqft_plugins.structure import find_blocks, find_linears

LAYOUT = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")


@dataclass(eq=False)
class ExpertLinear:
    """One linear layer of one expert.

    path: of the module with the experts, such as "model.layers.0.mlp.experts". experts: that module. parameter: its
    name there. number: of the expert. part: "gate_proj", "up_proj" or "down_proj".
    """

    path: str
    experts: Any
    parameter: str
    number: int
    part: str

    @property
    def name(self) -> str:
        return f"{self.path}.{self.number}.{self.part}"

    @property
    def whole(self) -> str:
        """The name of the parameter that holds the layer of all experts."""
        return f"{self.path}.{self.parameter}"

    @property
    def weight(self) -> Tensor:
        """[out, in], a view."""
        return self.view(self.experts.get_parameter(self.parameter).data)

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    @property
    def count(self) -> int:
        """How many experts the module has."""
        return len(self.experts.down_proj)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        rows, columns = self.weight.shape
        return rows, columns

    def view(self, value: Tensor) -> Tensor:
        """The place of this layer in a value of the whole parameter, [out, in]."""
        own = value[self.number]
        if self.experts.is_transposed:
            own = own.t()
        if self.parameter != "gate_up_proj":
            return own
        second = self.part == "up_proj"
        if self.experts.is_concatenated:
            return own.chunk(2)[second]
        return own[int(second) :: 2]


def find_experts(model: nn.Module) -> dict[str, ExpertLinear]:
    """Name → layer, for all experts of the decoder blocks, such as "model.layers.0.mlp.experts.3.down_proj". Raises
    SQFTError for a model without blocks."""
    prefix, blocks = find_blocks(model)
    return {
        layer.name: layer
        for path, module in blocks.named_modules(prefix=prefix)
        if all(hasattr(module, name) for name in LAYOUT)
        for layer in _layers_of(path, module)
    }


def _layers_of(path: str, experts: Any) -> Iterator[ExpertLinear]:
    own = dict(experts.named_parameters(recurse=False))
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    if not {first, "down_proj"} <= own.keys() or any(own[name].dim() != 3 for name in (first, "down_proj")):
        return
    for number in range(len(own[first])):
        for part in ("gate_proj", "up_proj") if experts.has_gate else ("up_proj",):
            yield ExpertLinear(path, experts, first, number, part)
        yield ExpertLinear(path, experts, "down_proj", number, "down_proj")


def stored_experts(model: nn.Module, stored: StoredNames) -> dict[str, ExpertLinear]:
    """Name in the files → layer, of the experts that the files hold one by one as they are, [out, in]. model: that of
    `stored`, on the device meta."""
    found: dict[str, ExpertLinear] = {}
    views: dict[str, dict[str, Tensor]] = {}
    for layer in find_experts(model).values():
        whole = layer.experts.get_parameter(layer.parameter)
        if layer.whole not in views:
            views[layer.whole] = stored.expert_views(layer.whole, whole) or {} if layer.whole in stored else {}
        found |= {
            name.removesuffix(".weight"): layer
            for name, view in views[layer.whole].items()
            if _place(view) == _place(layer.weight) and name.endswith(".weight")
        }
    return found


def _place(view: Tensor) -> tuple[Any, ...]:
    return view.storage_offset(), view.shape, view.stride()


def weights_inside(layers: Iterable[ExpertLinear]) -> dict[str, int]:
    """Parameter → how many of its weights these layers are."""
    found = Counter[str]()
    for layer in layers:
        found[layer.whole] += math.prod(layer.shape)
    return found


def names_of(module: str, layer: object) -> tuple[str, ...]:
    """What a layer to be left out may be called: an expert's also by its name in the model and by its parameter."""
    return (module, layer.name, layer.whole) if isinstance(layer, ExpertLinear) else (module,)


def find_routers(model: nn.Module) -> list[str]:
    """What decides beside experts how much of them a token gets: linear layers and parameters [experts, in] or [1, in]
    (the gate of a shared expert). They are small, and a wrong choice costs a whole expert."""
    beside = {layer.path.rpartition(".")[0]: layer.count for layer in find_experts(model).values()}
    linears = find_linears(model) if beside else {}
    found = []
    for parent, count in beside.items():
        for own, parameter in model.get_submodule(parent).named_parameters(prefix=parent):
            name = own.removesuffix(".weight") if own.removesuffix(".weight") in linears else own
            if parameter.dim() == 2 and parameter.shape[0] in (1, count) and not own.startswith(f"{parent}.experts."):
                found.append(name)
    return found


# --- statistics ---


@dataclass(frozen=True)
class Call:
    """One call of a module of experts. hidden: [tokens, in]. chosen: [tokens, k], the numbers of the experts."""

    hidden: Tensor
    chosen: Tensor

    @classmethod
    def of(cls, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Raises SQFTError for a call of other arguments than transformers' own."""
        values = [*args, *kwargs.values()]
        if len(values) < 2 or not all(isinstance(value, Tensor) and value.dim() == 2 for value in values[:2]):
            raise SQFTError(f"the experts {name} are not called as transformers calls its own: exclude them")
        return cls(values[0], values[1])

    def inputs(self, number: int) -> Tensor:
        """What an expert sees, [its tokens, in]."""
        return self.hidden[(self.chosen == number).any(-1)]


def visit_experts(
    layers: Mapping[str, ExpertLinear],
    calls: Sequence[Call],
    kind: Statistic,
    visit: Callable[[list[str], InputStatistic], None],
) -> None:
    """Visits each layer, expert after expert, with the statistic of its own inputs; an expert's down projection sees
    what its visited gate and up make. One expert's statistic is in memory at a time, and where experts are not
    reached, the sums of the others'.

    layers: of one module of experts. calls: one for each micro-batch. visit: gets the layers that share their inputs,
    and what these are. Raises SQFTError where no expert is reached.
    """
    some = next(iter(layers.values()))
    path, experts, count = some.path, some.experts, some.count
    reached = sorted({int(number) for call in calls for number in call.chosen.unique() if number < count})
    if not reached:
        raise SQFTError(f"no token reaches an expert of {path}: give more calibration text, or exclude them")
    waiting = sorted({layer.number for layer in layers.values()}.difference(reached))
    if waiting:
        say(
            f"{path}: no calibration token reaches {len(waiting)} of {count} experts (such as {waiting[0]}): the mean "
            "statistic of the others stands for theirs; more text (--sequences) reaches more"
        )

    def of(number: int, down: bool) -> list[str]:
        return [n for n, own in layers.items() if own.number == number and (own.part == "down_proj") == down]

    sums = InputStatistic(kind), InputStatistic(kind)  # before and behind gate and up, of all that are reached
    for number in reached:
        inputs = [call.inputs(number) for call in calls]
        for down in (False, True):
            if down:
                inputs = [between(experts, number, x) for x in inputs]
            if waiting or of(number, down):
                seen = InputStatistic(kind)
                for x in inputs:
                    seen.add(x)
                if waiting:
                    sums[down].add_sum(seen)
                if of(number, down):
                    visit(of(number, down), seen)

    for down in (False, True):
        names = [name for number in waiting for name in of(number, down)]
        if names:
            visit(names, sums[down].mean(len(reached)))


def between(experts: Any, number: int, x: Tensor) -> Tensor:
    """The inputs of an expert's down projection from those of the expert, [tokens, in] → [tokens, between]."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    weight = experts.get_parameter(name)[number]
    bias = experts.get_parameter(f"{name}_bias")[number] if experts.has_bias else None
    first = nn.functional.linear(x.to(weight.dtype), weight.t() if experts.is_transposed else weight, bias)
    made: Tensor = experts._apply_gate(first) if experts.has_gate else experts.act_fn(first)
    return made
