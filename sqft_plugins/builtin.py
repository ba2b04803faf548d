"""What the core itself offers, through the same hooks as every plug-in. Methods are imported when they are used."""

from __future__ import annotations

from typing import Any

from sqft_plugins.plugins.hookspecs import hookimpl
from sqft_plugins.plugins.loading import late


@hookimpl
def sqft_pruners() -> Any:
    return [
        late("wanda", "sqft_plugins.compress.wanda:Wanda"),
        late("sparsegpt", "sqft_plugins.compress.sparsegpt:SparseGPT"),
        late("magnitude", "sqft_plugins.compress.magnitude:Magnitude"),
    ]


@hookimpl
def sqft_quantizers() -> Any:
    return [
        late("round-to-nearest", "sqft_plugins.compress.round_to_nearest:RoundToNearest"),
        late("gptq", "sqft_plugins.compress.gptq:GPTQ"),
    ]


@hookimpl
def sqft_grids() -> Any:
    from sqft_plugins.grid import BUILTIN

    return BUILTIN.values()


@hookimpl
def sqft_searchers() -> Any:
    from sqft_plugins.search import SEARCHERS

    return SEARCHERS


@hookimpl
def sqft_search_methods() -> Any:
    from sqft_plugins.search.methods import METHODS

    return METHODS


@hookimpl
def sqft_engines() -> Any:
    return [late("transformers", "sqft_plugins.evaluate.transformers_engine:TransformersEngine")]


@hookimpl
def sqft_tasks() -> Any:
    return [late("word-problems", "sqft_plugins.demo.task:WordProblems")]


@hookimpl
def sqft_upstream() -> Any:
    from sqft_plugins.canary.core import UPSTREAM

    return [UPSTREAM]
