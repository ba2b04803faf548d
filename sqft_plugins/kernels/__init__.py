"""Sparse INT4 linear layers: the packed form in memory, its operators and their back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqft_plugins.kernels.weight import SparseInt4Weight

__all__ = ["SparseInt4Weight"]


def __getattr__(name: str) -> Any:
    if name == "SparseInt4Weight":  # late: `python -m sqft_plugins.kernels.build` must not need what it builds
        from sqft_plugins.kernels.weight import SparseInt4Weight

        return SparseInt4Weight
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
