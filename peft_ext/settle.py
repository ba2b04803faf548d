"""Settling: an adapter that was trained over the codes of its base is put on their grid, once, with compensation.

Rounded to nearest, a delta of less than half a step changes no code. So each layer gets those codes whose outputs are
near the outputs of W + s · (B @ A) ⊙ M (`sqft_plugins.compress.compensate`), one after the other, on the inputs that it
has behind layers that have settled already. From then on the adapter computes with these codes, unmerged and merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from peft_ext.layer import Linear
from sqft_plugins.checkpoint.packed_layers import is_packed
from sqft_plugins.compress.compensate import compensated, ordered_factor
from sqft_plugins.compress.drive import Compressed, Compression, InMemory
from sqft_plugins.compress.hessian import FactorMemo
from sqft_plugins.compress.report import Row, relative_error
from sqft_plugins.errors import SQFTError
from sqft_plugins.mask import sparsity_of
from sqft_plugins.structure import find_blocks, set_weight, weight_of

OWN = ".base_layer"
"""Of the names of linear layers within an adapted model."""


def settle(
    model: Any, adapter: str, layers: Mapping[str, Linear], tokens: Tensor, ranks: Sequence[int]
) -> dict[int, list[Row]]:
    """Makes the codes of the adapter at each of `ranks`, and keeps them in its layers → rank → what became of each.

    model: the whole model that `layers` (module name → layer) are in. tokens: int64 [sequences, length], text of the
    kind that was trained on. The base's weights are back in place afterwards. Raises SQFTError for an adapter that is
    not `compensated`, and for adapted layers outside the decoder blocks.
    """
    _check(model, adapter, layers, ranks)
    return {rank: _settle_at(model, adapter, layers, tokens, rank) for rank in ranks}


def _settle_at(model: Any, adapter: str, layers: Mapping[str, Linear], tokens: Tensor, rank: int) -> list[Row]:
    factor_of = FactorMemo(ordered_factor)
    made: dict[str, Tensor] = {}  # kept only when all layers have theirs

    def put_on_grid(module: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
        assert statistic is not None
        name = module.removesuffix(OWN)
        wanted, grid, mask = layers[name].wanted(adapter)
        made[name] = compensated(wanted, statistic, grid, mask, factor_of)
        exact, pruned = grid.dequantize(made[name]), 0.0 if mask is None else sparsity_of(mask)
        return Compressed(exact, {"sparsity": pruned, "error": relative_error(wanted, exact)}, {})

    modules = [f"{name}{OWN}" for name in layers]
    work = Compression(f"settling at rank {rank}", modules, "hessian", tokens, put_on_grid)
    store = _BaseStays(model, layers)
    with _at_rank(layers, adapter, rank):
        with _without_adapters(model):
            try:
                rows = work.run(store)
            finally:
                store.put_back()
        for name, codes in made.items():
            layers[name].settle(adapter, codes)
    return rows


class _BaseStays(InMemory):
    """A model whose blocks get their own weights back when they have done their part."""

    def __init__(self, model: Any, layers: Mapping[str, Linear]):
        super().__init__(model)
        self._bases = {id(layer.base()) for layer in layers.values()}
        self._kept: list[tuple[Any, Tensor | None]] = []  # None of a packed weight, which stays

    def load(self, index: int, block: nn.Module) -> None:
        own: list[Any] = [module for module in block.modules() if id(module) in self._bases]
        self._kept = [(linear, None if is_packed(linear) else weight_of(linear).clone()) for linear in own]

    def finished(self, block: nn.Module, rows: list[Row], run: Any) -> None:
        self.put_back()
        super().finished(block, rows, run)

    def put_back(self) -> None:
        """Gives the block that was worked on last its own weights back, also after an error in it."""
        for linear, weight in self._kept:
            if weight is None:
                linear.release()
            else:
                set_weight(linear, weight)
        self._kept = []


def _check(model: Any, adapter: str, layers: Mapping[str, Linear], ranks: Sequence[int]) -> None:
    if not all(layer.elastic[adapter].compensated for layer in layers.values()):
        raise SQFTError(
            f"adapter {adapter!r} is put on its grid in each training step: settle is for rounding='compensated'"
        )
    choices = {rank for layer in layers.values() for rank in layer.elastic[adapter].ranks.choices}
    for rank in ranks:
        if rank not in choices:
            raise SQFTError(f"ranks={list(ranks)}: no layer has the rank {rank}, use some of {sorted(choices)}")
    if any(module.merged or module.is_sharded() for module in model.modules() if isinstance(module, Linear)):
        raise SQFTError(f"adapter {adapter!r} cannot settle over merged or sharded weights: unmerge, in one process")
    check_within_blocks(model, layers)


def check_within_blocks(model: Any, layers: Iterable[str]) -> None:
    """Raises SQFTError for adapted modules outside the decoder blocks, whose inputs are not seen."""
    blocks, _ = find_blocks(model)
    outside = next((name for name in layers if not name.startswith(f"{blocks}.")), None)
    if outside is not None:
        raise SQFTError(
            f"target_modules adapts {outside}, which is in no block: leave it out, or use rounding='nearest'"
        )


@contextmanager
def _at_rank(layers: Mapping[str, Linear], adapter: str, rank: int) -> Iterator[None]:
    """Here the chosen rank is `rank`; of a layer with a fixed rank its own."""
    ranks = {name: layer.elastic[adapter].ranks for name, layer in layers.items()}
    before = {name: own.chosen for name, own in ranks.items()}
    for own in ranks.values():
        own.chosen = rank if rank in own.choices else own.choices[0]
    try:
        with ExitStack() as stack:
            for layer in layers.values():
                stack.enter_context(layer.at_chosen_rank())
            yield
    finally:
        for name, own in ranks.items():
            own.chosen = before[name]


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """Here all layers compute as their bases do. (PEFT's own switch also says which parameters are trained.)"""
    adapted = [(module, module._disable_adapters) for module in model.modules() if isinstance(module, Linear)]
    for layer, _ in adapted:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, before in adapted:
            layer._disable_adapters = before
