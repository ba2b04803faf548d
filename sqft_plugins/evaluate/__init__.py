"""Evaluation: tasks, the runtimes they run on, and perplexity."""

from sqft_plugins.evaluate.run import Accuracy, Perplexity, accuracy, open_session, perplexity, perplexity_of

__all__ = ["Accuracy", "Perplexity", "accuracy", "open_session", "perplexity", "perplexity_of"]
