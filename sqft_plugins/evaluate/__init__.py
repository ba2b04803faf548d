"""Evaluation: tasks, the runtimes they run on, and perplexity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.evaluate.run import Accuracy, Perplexity, accuracy, open_session, perplexity, perplexity_of

__all__ = ["Accuracy", "Perplexity", "accuracy", "open_session", "perplexity", "perplexity_of"]
__getattr__ = lazy(__name__, dict.fromkeys(__all__, "run"))
