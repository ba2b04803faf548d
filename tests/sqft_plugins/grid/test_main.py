"""`python -m sqft_plugins.grid` lists every kind, and finds one whose formula does not hold."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.grid import BUILTIN, INT4, NF4, GridKind
from sqft_plugins.grid.__main__ import main, report
from sqft_plugins.grid.proof import random_weight, what_fails
from sqft_plugins.plugins import get_manager


def test_every_kind_of_every_plug_in_holds(capsys) -> None:
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:]} == set(get_manager().collect("sqft_grids"))
    assert set(BUILTIN) <= {line.split()[0] for line in lines}
    assert all(line.endswith(" yes") for line in lines[1:])


@pytest.mark.parametrize("kind", [*BUILTIN.values(), GridKind("small", 1, affine=True)], ids=lambda kind: kind.name)
def test_all_codes_are_tried_in_every_row(kind) -> None:
    grid, codes = random_weight(kind)
    there = kind.level(torch.arange(2**kind.bits, dtype=torch.uint8)).isnan().logical_not()
    for row in codes:
        assert torch.equal(row.unique(), there.nonzero().flatten().to(torch.uint8))
    assert grid.dequantize(codes).isfinite().all()


class Crooked(GridKind):
    """Its nearest level is not the nearest one."""

    def nearest_level(self, numbers):
        return super().nearest_level(numbers) ^ 1


class Boasting(GridKind):
    """It has no 0, and says so."""

    @property
    def has_zero(self):
        return True


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Crooked("crooked", 4, NF4.levels), "values are rounded to another value"),
        (Boasting("boasting", 1, (-1.0, 1.0)), "0 is not a value of every group"),
    ],
)
def test_a_kind_that_does_not_hold_is_named(kind, why) -> None:
    assert why in (what_fails(kind) or "")
    lines, sound = report([INT4, kind])
    assert not sound
    assert lines[1].endswith(" yes")
    assert why in lines[2]
