from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqft_plugins import mask as masks
from sqft_plugins.errors import SQFTError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_pack_is_lsb_first_and_unpack_undoes_it(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=generator(seed)) < 0.5
    packed = masks.pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-columns // 8))
    for column in range(columns):
        bit = (packed[:, column // 8] >> (column % 8)) & 1
        assert torch.equal(bit.bool(), mask[:, column])
    assert torch.equal(masks.unpack_mask(packed, columns), mask)


def naive_lowest(score: torch.Tensor, count: int) -> torch.Tensor:
    mask = torch.ones_like(score, dtype=torch.bool)
    for row in range(score.shape[0]):
        order = sorted(range(score.shape[1]), key=lambda column: (float(score[row, column]), column))
        mask[row, order[:count]] = False
    return mask


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 1), st.booleans())
@settings(deadline=None, max_examples=100)
def test_lowest_mask_is_exact_in_every_row_and_ties_go_to_the_earlier_column(rows, columns, seed, sparsity, ties):
    score = torch.rand(rows, columns, generator=generator(seed))
    if ties:
        score = (score * 3).round()
    mask = masks.lowest_mask(score, sparsity)
    count = round(sparsity * columns)
    assert bool(((~mask).sum(1) == count).all())
    assert torch.equal(mask, naive_lowest(score, count))


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, 50, float("nan")])
def test_sparsity_outside_the_range_is_refused(sparsity):
    with pytest.raises(SQFTError, match=r"sparsity=.* is outside 0\.\.1"):
        masks.lowest_mask(torch.ones(1, 4), sparsity)


def test_nonzero_mask_counts_both_zeros_as_pruned():
    assert masks.nonzero_mask(torch.tensor([[0.0, -0.0, 1e-30, -1.0]])).tolist() == [[False, False, True, True]]


def test_hash_depends_on_names_shapes_and_bits_but_not_on_order():
    a, b = (masks.pack_mask(torch.rand(4, 16, generator=generator(s)) < 0.5) for s in (0, 1))
    assert masks.mask_hash({"a": a, "b": b}) == masks.mask_hash({"b": b, "a": a})
    changed = a.clone()
    changed[0, 0] ^= 1
    others = [{"a": b, "b": a}, {"a": a}, {"a": changed, "b": b}, {"a": a.reshape(2, 4), "b": b}, {"a": a, "c": b}]
    hashes = {masks.mask_hash(other) for other in others} | {masks.mask_hash({"a": a, "b": b})}
    assert len(hashes) == len(others) + 1


def test_sparsity_of():
    assert masks.sparsity_of(torch.tensor([[True, False, False, False]])) == 0.75
    assert masks.sparsity_of(torch.ones(0, 4, dtype=torch.bool)) == 1.0
