"""Sparse INT4 linear layers: the packed form in memory, its operators and their back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.kernels.weight import SparseInt4Weight

__all__ = ["SparseInt4Weight"]

# late: `python -m sqft_plugins.kernels.build` must not need what it builds
__getattr__ = lazy(__name__, {"SparseInt4Weight": "weight"})
