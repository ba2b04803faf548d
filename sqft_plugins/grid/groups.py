"""Groups: the neighbouring columns that share a scale."""

from __future__ import annotations

from sqft_plugins.errors import GridError

GROUP_SIZES = (32, 64, 128)
PER_CHANNEL = -1
"""The `group_size` that makes one group of a whole row."""


def group_width(in_features: int, group_size: int, name: str = "weight") -> int:
    """The columns of one group. Raises GridError where `group_size` does not divide `in_features`."""
    if group_size == PER_CHANNEL:
        return in_features
    if group_size <= 0:
        raise GridError(f"group_size={group_size} is not a group: use 32, 64, 128 or -1 (per channel)")
    if in_features % group_size:
        raise GridError(
            f"group_size={group_size} does not divide in={in_features} of {name}: "
            f"use one of {[g for g in GROUP_SIZES if in_features % g == 0] + [PER_CHANNEL]}, or exclude the layer"
        )
    return group_size


def group_count(in_features: int, group_size: int, name: str = "weight") -> int:
    """The groups of one row. Raises GridError where `group_size` does not divide `in_features`."""
    return in_features // group_width(in_features, group_size, name)
