"""The linear layers of one block, each visited before it computes for good, so that it sees compressed predecessors.

With one micro-batch, in a single pass of the block:

1. A hook before a layer sees its inputs, collects their statistic and visits the layer.
2. The layer computes with the weight that the visit left, and its outputs go on to the next hook.

With more, the statistic needs all micro-batches before the visit, so that the block runs once for each group of layers
that share an input (q, k and v):

1. `_next_group`: every micro-batch runs until a layer outside the group is reached, where StopBlock ends it; the hooks
   before the layers of the group collect one statistic.
2. The layers of the group are visited. From here on they compute with their new weights.
3. When no layer is left, the whole block runs for its outputs.

The experts of a mixture are visited all together when their module is reached, from its inputs alone (experts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.compress.blocks import NO_CALIBRATION, BlockRun, StopBlock
from sqft_plugins.compress.experts import Call, ExpertLinear, visit_experts
from sqft_plugins.compress.statistic import InputStatistic
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.plugins.protocols import Statistic

Visit = Callable[[str, Tensor], None]
"""(name, statistic of the layer's inputs): what it writes into the weight is what the layer computes with."""
VisitGroup = Callable[[list[str], InputStatistic], None]
"""The same for layers that share their inputs."""
Layer = nn.Module | ExpertLinear
Mixtures = dict[str, dict[str, ExpertLinear]]


def visit_linears(run: BlockRun, layers: Mapping[str, Layer], statistic: Statistic, visit: Visit) -> None:
    """Visits every linear layer of a block in the order in which they are called, and advances the run.

    The result does not depend on the number of micro-batches, up to the order of the sums. Layers that share an input
    get the same statistic tensor.

    Raises GridError for inputs that are not finite, SQFTError for a layer that is never called.
    """
    # whatever is called by itself: linear layers, and modules of experts
    left: dict[str, nn.Module] = {}
    mixtures: Mixtures = {}
    for name, layer in layers.items():
        if isinstance(layer, ExpertLinear):
            left[layer.path] = layer.experts
            mixtures.setdefault(layer.path, {})[name] = layer
        else:
            left[name] = layer

    def visit_group(names: list[str], seen: InputStatistic) -> None:
        value = _value(seen, names[0])
        for name in names:
            visit(name, value)

    if len(run.states) == 1:
        _visit_on_arrival(run, left, mixtures, statistic, visit_group)
        return
    while left:
        names, seen, calls = _next_group(run, left, mixtures, statistic)
        run.position.visiting = True
        if calls:
            visit_experts(mixtures[names[0]], calls, statistic, visit_group)
        else:
            visit_group(names, seen)
        run.position.visiting = False
        for name in names:
            del left[name]
    run.advance()


def _visit_on_arrival(
    run: BlockRun, layers: Mapping[str, nn.Module], mixtures: Mixtures, statistic: Statistic, visit_group: VisitGroup
) -> None:
    left = set(layers)
    last: tuple[Tensor | None, InputStatistic] = (None, InputStatistic(statistic))  # inputs, their statistic

    def arrived(name: str, inputs: Tensor | Call) -> None:
        nonlocal last
        if name not in left:  # a layer that is called again was visited at its first call
            return
        left.remove(name)
        if isinstance(inputs, Call):
            visit_experts(mixtures[name], [inputs], statistic, visit_group)
            return
        if last[0] is not inputs:
            seen = InputStatistic(statistic)
            seen.add(inputs)
            last = inputs, seen
        visit_group([name], last[1])

    with _hooked(run, layers, mixtures, arrived):
        run.advance()
    if left:
        _never_called([name for name in layers if name in left])


def _next_group(
    run: BlockRun, left: Mapping[str, nn.Module], mixtures: Mixtures, kind: Statistic
) -> tuple[list[str], InputStatistic, list[Call]]:
    """The layers of `left` that are called first and share their input, and the statistic of it; or one module of
    experts, and its calls."""
    seen = InputStatistic(kind)
    names: list[str] = []
    calls: list[Call] = []
    inputs_now: Tensor | None = None

    def arrived(name: str, inputs: Tensor | Call) -> None:
        nonlocal inputs_now
        if isinstance(inputs, Call):
            if inputs_now is None:
                names[:] = [name]
                calls.append(inputs)
            raise StopBlock
        if inputs_now is None:
            inputs_now = inputs
            seen.add(inputs)
        elif inputs_now is not inputs:
            raise StopBlock
        if name not in names:
            names.append(name)

    def next_batch() -> None:
        nonlocal inputs_now
        inputs_now = None

    with _hooked(run, left, mixtures, arrived):
        run.look(next_batch)
    if not names:
        _never_called(list(left))
    return names, seen, calls


def _value(seen: InputStatistic, name: str) -> Tensor:
    value = seen.value()
    if not bool(torch.isfinite(value).all()):
        raise GridError(f"the inputs of layer {name} are not finite: look for broken weights before it")
    return value


def _never_called(names: list[str]) -> None:
    raise SQFTError(
        f"layer {names[0]} (and {len(names) - 1} more) is never called by the forward pass, so nothing is known of its "
        f"inputs: exclude it, or {NO_CALIBRATION}"
    )


@contextmanager
def _hooked(
    run: BlockRun,
    layers: Mapping[str, nn.Module],
    mixtures: Mixtures,
    arrived: Callable[[str, Tensor | Call], None],
) -> Iterator[None]:
    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run.position.visiting = True  # what is raised from here on is not the model's
            arrived(name, Call.of(name, args, kwargs) if name in mixtures else args[0])
            run.position.visiting = False

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
