"""Evaluation: tasks, the runtimes they run on, and perplexity."""

from sqft_plugins.evaluate.run import Accuracy, accuracy, open_session, perplexity

__all__ = ["Accuracy", "accuracy", "open_session", "perplexity"]
