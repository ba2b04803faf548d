"""Choices that need no search: the largest, the smallest and the median rank, the same for every module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from sqft_plugins.elastic import NAMED_RANKS, configuration
from sqft_plugins.plugins.protocols import Searcher

SEARCHERS: Mapping[str, Searcher] = {name: partial(configuration, name) for name in NAMED_RANKS}
"""Name → (module names, search space) → module name → rank. "heuristic" is the paper's reference, the median rank."""
