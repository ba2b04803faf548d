"""What the core itself offers, through the same hooks as every plug-in."""

from __future__ import annotations

from sqft_plugins.compress.magnitude import Magnitude
from sqft_plugins.compress.round_to_nearest import RoundToNearest
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.demo.task import WordProblems
from sqft_plugins.evaluate.transformers_engine import TransformersEngine
from sqft_plugins.plugins.hookspecs import hookimpl


@hookimpl
def sqft_pruners():
    return [Wanda(), Magnitude()]


@hookimpl
def sqft_quantizers():
    return [RoundToNearest()]


@hookimpl
def sqft_engines():
    return [TransformersEngine()]


@hookimpl
def sqft_tasks():
    return [WordProblems()]
