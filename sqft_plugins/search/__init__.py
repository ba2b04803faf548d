"""Choosing a sub-adapter of a super-adapter."""

from sqft_plugins.search.fixed import SEARCHERS

__all__ = ["SEARCHERS"]
