"""Choosing a sub-adapter of a super-adapter. Here are the choices that need no evaluation (`--rank NAME`): the largest,
the smallest and the median rank, the same for every module. `run` has what `sqft search` does; it is imported there,
since it needs transformers and Optuna."""

from collections.abc import Mapping
from functools import partial

from sqft_plugins.elastic import NAMED_RANKS, configuration
from sqft_plugins.plugins.protocols import Searcher

__all__ = ["SEARCHERS"]

SEARCHERS: Mapping[str, Searcher] = {name: partial(configuration, name) for name in NAMED_RANKS}
"""Name → (module names, search space) → module name → rank. "heuristic" is the paper's reference, the median rank."""
