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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sqft_plugins.compress.blocks import BlockRun, StopBlock
from sqft_plugins.compress.statistic import InputStatistic
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.plugins.protocols import Statistic

Visit = Callable[[str, Tensor], None]
"""(name, statistic of the layer's inputs): what it writes into the weight is what the layer computes with."""


def visit_linears(run: BlockRun, linears: Mapping[str, nn.Module], statistic: Statistic, visit: Visit) -> None:
    """Visits every linear layer of a block in the order in which they are called, and advances the run.

    The result does not depend on the number of micro-batches, up to the order of the sums. Layers that share an input
    get the same statistic tensor.

    Raises GridError for inputs that are not finite, SQFTError for a layer that is never called.
    """
    if len(run.states) == 1:
        _visit_on_arrival(run, linears, statistic, visit)
        return
    left = dict(linears)
    while left:
        names, seen = _next_group(run, left, statistic)
        for name in names:
            visit(name, _value(seen, name))
            del left[name]
    run.advance()


def _visit_on_arrival(run: BlockRun, linears: Mapping[str, nn.Module], statistic: Statistic, visit: Visit) -> None:
    left = set(linears)
    last: tuple[Tensor | None, Tensor | None] = (None, None)  # inputs, their statistic

    def arrived(name: str, inputs: Tensor) -> None:
        nonlocal last
        if name not in left:  # a layer that is called again was visited at its first call
            return
        left.remove(name)
        if last[0] is not inputs:
            seen = InputStatistic(statistic)
            seen.add(inputs)
            last = inputs, _value(seen, name)
        assert last[1] is not None
        visit(name, last[1])

    with _hooked(linears, arrived):
        run.advance()
    if left:
        _never_called([name for name in linears if name in left])


def _next_group(run: BlockRun, left: Mapping[str, nn.Module], kind: Statistic) -> tuple[list[str], InputStatistic]:
    """The layers of `left` that are called first and share their input, and the statistic of it."""
    seen = InputStatistic(kind)
    names: list[str] = []
    inputs_now: Tensor | None = None

    def arrived(name: str, inputs: Tensor) -> None:
        nonlocal inputs_now
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

    with _hooked(left, arrived):
        run.look(next_batch)
    if not names:
        _never_called(list(left))
    return names, seen


def _value(seen: InputStatistic, name: str) -> Tensor:
    value = seen.value()
    if not bool(torch.isfinite(value).all()):
        raise GridError(f"the inputs of layer {name} are not finite: look for broken weights before it")
    return value


def _never_called(names: list[str]) -> None:
    raise SQFTError(
        f"layer {names[0]} (and {len(names) - 1} more) is never called by the forward pass, so nothing is known of its "
        "inputs: exclude it, or use a method that needs no calibration, such as magnitude or round-to-nearest"
    )


@contextmanager
def _hooked(linears: Mapping[str, nn.Module], arrived: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            arrived(name, inputs[0])

        return hook

    handles = [linear.register_forward_pre_hook(hook_of(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
