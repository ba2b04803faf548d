"""Choosing a sub-adapter of a super-adapter. `fixed` holds the choices that need no evaluation (`--rank NAME`), `run`
what `sqft search` does; it is imported there, since it needs transformers and Optuna."""

from sqft_plugins.search.fixed import SEARCHERS

__all__ = ["SEARCHERS"]
