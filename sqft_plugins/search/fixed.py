"""Choices that need no search: the largest, the smallest and the median rank, the same for every module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqft_plugins.elastic import NAMED_RANKS, configuration


def _everywhere(name: str) -> Callable[[Sequence[str], Sequence[int]], dict[str, int]]:
    def choose(modules: Sequence[str], rank_choices: Sequence[int]) -> dict[str, int]:
        return configuration(name, modules, rank_choices)

    return choose


SEARCHERS: Mapping[str, Callable[[Sequence[str], Sequence[int]], Mapping[str, int]]] = {
    name: _everywhere(name) for name in NAMED_RANKS
}
"""Name → (module names, search space) → module name → rank. "heuristic" is the paper's reference, the median rank."""
