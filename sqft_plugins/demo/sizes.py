"""How large a demo a machine has time for: about ten minutes with the installation, on two cores."""

from __future__ import annotations

from sqft_plugins.demo.settings import SIZES, DemoSettings, Sizes
from sqft_plugins.hardware import matmul_speed
from sqft_plugins.progress import say

FAST = 150.0
"""GFLOP/s from which a machine takes the large sizes. Two cores at 190 GFLOP/s take some five minutes for them; an
older laptop has a third to a half of that speed. After fewer than two dozen steps the tuned model cannot be told from
the pruned one."""


def choose_size() -> str:
    """The size for this machine, after a third of a second of measuring."""
    return "large" if matmul_speed() >= FAST else "small"


def with_size(settings: DemoSettings, size: str) -> Sizes:
    """What the user asked for, and the size's numbers where nothing was asked."""
    asked = {name: number for name in Sizes._fields if (number := getattr(settings, name)) is not None}
    sizes = SIZES[size]._replace(**asked)
    chosen = [f"--{name.replace('_', '-')} {getattr(sizes, name)}" for name in Sizes._fields if name not in asked]
    if chosen:
        say(f"{' '.join(chosen)}: what a machine of this speed has time for")
    return sizes
