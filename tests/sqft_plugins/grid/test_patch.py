"""A patch of codes gives back the very codes, in as few bytes as it says."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.errors import GridError
from sqft_plugins.grid import apply_patch, make_patch


def changed(bits: int, shape: tuple[int, int], fraction: float):
    generator = torch.Generator().manual_seed(bits)
    base = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    other = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    return base, torch.where(torch.rand(shape, generator=generator) < fraction, other, base)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 32), (7, 129)])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_a_patch_gives_back_the_codes(bits, shape, fraction) -> None:
    base, codes = changed(bits, shape, fraction)
    patch = make_patch(base, codes, bits)
    assert torch.equal(apply_patch(base, patch, bits), codes)

    different, weights = int((codes != base).sum()), codes.numel()
    a_code = 0.5 if bits <= 4 else 1
    assert len(patch) == -(-weights // 8) + -int(-different * a_code // 1)


def test_the_layout_is_the_one_that_is_documented() -> None:
    base = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.uint8)
    codes = torch.tensor([[0, 9, 2], [10, 4, 11]], dtype=torch.uint8)
    assert make_patch(base, codes, 4).tolist() == [0b101010, 9 | 10 << 4, 11]
    assert make_patch(base, codes, 5).tolist() == [0b101010, 9, 10, 11]


def test_a_patch_of_another_weight_is_refused() -> None:
    base, codes = changed(4, (8, 32), 0.5)
    patch = make_patch(base, codes, 4)
    for wrong in (patch[:-1], torch.cat([patch, patch[:1]]), patch[:3]):
        with pytest.raises(GridError, match="not one of a weight"):
            apply_patch(base, wrong, 4)
