"""What the core itself offers, through the same hooks as every plug-in. Imported when it is asked for."""

from __future__ import annotations

from sqft_plugins.plugins.hookspecs import hookimpl


@hookimpl
def sqft_pruners():
    from sqft_plugins.compress.magnitude import Magnitude
    from sqft_plugins.compress.sparsegpt import SparseGPT
    from sqft_plugins.compress.wanda import Wanda

    return [Wanda(), SparseGPT(), Magnitude()]


@hookimpl
def sqft_quantizers():
    from sqft_plugins.compress.gptq import GPTQ
    from sqft_plugins.compress.round_to_nearest import RoundToNearest

    return [RoundToNearest(), GPTQ()]


@hookimpl
def sqft_searchers():
    from sqft_plugins.search import SEARCHERS

    return SEARCHERS


@hookimpl
def sqft_search_methods():
    from sqft_plugins.search.methods import METHODS

    return METHODS


@hookimpl
def sqft_engines():
    from sqft_plugins.evaluate.transformers_engine import TransformersEngine

    return [TransformersEngine()]


@hookimpl
def sqft_tasks():
    from sqft_plugins.demo.task import WordProblems

    return [WordProblems()]
