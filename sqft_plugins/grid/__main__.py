"""`python -m sqft_plugins.grid`: every kind of grid that an adapter can be trained through, and whether its formula
holds. Exits with 1 where one does not."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import cast

from sqft_plugins.grid import GridKind
from sqft_plugins.grid.proof import what_fails
from sqft_plugins.plugins import get_manager


def report(kinds: Iterable[GridKind]) -> tuple[list[str], bool]:
    """(a line for each kind, whether all hold)."""
    lines = [f"{'grid':<12} {'bits':>4}  {'group':>5}  {'levels':<9} {'exact 0':<8} holds"]
    sound = True
    for kind in kinds:
        levels = "table" if kind.levels is not None else "affine" if kind.affine else "integers"
        why = what_fails(kind)
        sound = sound and why is None
        zero = "yes" if kind.has_zero else "no"
        lines.append(
            f"{kind.name:<12} {kind.bits:>4}  {kind.group_size or 'any':>5}  {levels:<9} {zero:<8} {why or 'yes'}"
        )
    return lines, sound


def main() -> int:
    kinds = cast("dict[str, GridKind]", get_manager().collect("sqft_grids"))
    lines, sound = report(kinds.values())
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
