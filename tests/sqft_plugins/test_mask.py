from __future__ import annotations

import re
from pathlib import Path

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
    assert packed.shape == masks.packed_mask_shape(mask.shape) == (rows, -(-columns // 8))
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


@pytest.mark.parametrize(
    ("value", "expected", "text"),
    [
        (0.5, (0.5, None, None), "50%"),
        ("0.5", (0.5, None, None), "50%"),
        ("50%", (0.5, None, None), "50%"),
        (" 7 %", (0.07, None, None), "7%"),
        (0, (0.0, None, None), "0%"),
        (1, (1.0, None, None), "100%"),
        ("2:4", (0.5, 2, 4), "2:4"),
        ("1:4", (0.75, 1, 4), "1:4"),
        ("8:8", (0.0, 8, 8), "8:8"),
    ],
)
def test_a_pattern_is_read_and_written_as_users_write_it(value, expected, text):
    pattern = masks.Pattern.parse(value)
    assert (pattern.sparsity, pattern.keep, pattern.group) == expected
    assert str(pattern) == text
    assert masks.Pattern.parse(text) == pattern


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5:4", "sparsity=5:4 is no N:M with 1 <= N <= M"),
        ("0:4", "sparsity=0:4 is no N:M"),
        ("0:0", "sparsity=0:0 is no N:M"),
        ("2:4:8", "sparsity='2:4:8' is no pattern: give a fraction such as 0.5 or 50%, or N:M"),
        ("-2:4", "sparsity='-2:4' is no pattern"),
        ("abc", "sparsity='abc' is no pattern"),
        ("", "sparsity='' is no pattern"),
        (1.5, r"sparsity=1\.5 is outside 0\.\.1"),
        ("150%", r"sparsity=1\.5 is outside 0\.\.1"),
        ("50", r"sparsity=50\.0 is outside 0\.\.1"),
        ("nan", "sparsity=nan is outside"),
    ],
)
def test_what_is_no_pattern_is_refused_by_its_value(value, message):
    with pytest.raises(SQFTError, match=message):
        masks.Pattern.parse(value)


def test_a_pattern_cannot_contradict_itself():
    with pytest.raises(SQFTError, match=r"sparsity=0\.3 is not that of 2:4: use Pattern\.parse\('2:4'\)"):
        masks.Pattern(0.3, 2, 4)
    with pytest.raises(SQFTError, match="sparsity=2:None is no N:M"):
        masks.Pattern(0.5, 2)


def test_a_group_that_does_not_divide_names_layer_and_remedy():
    pattern = masks.Pattern.parse("3:8")
    pattern.check(64)
    masks.Pattern(0.5).check(7)
    with pytest.raises(SQFTError, match=r"3:8 does not divide in=36 of m\.up_proj: .* such as 0\.625, or exclude"):
        pattern.check(36, "m.up_proj")
    with pytest.raises(SQFTError, match="3:8 does not divide in=36 of weight"):
        pattern.mask(torch.ones(1, 36))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31), st.data())
@settings(deadline=None, max_examples=100)
def test_nm_keeps_the_highest_of_every_group_and_ties_go_to_the_earlier_column(rows, groups, group, seed, data):
    keep = data.draw(st.integers(1, group))
    score = torch.rand(rows, groups * group, generator=generator(seed))
    if data.draw(st.booleans()):
        score = (score * 3).round()
    if data.draw(st.booleans()):
        score = score.to(torch.bfloat16)
    mask = masks.Pattern.parse(f"{keep}:{group}").mask(score)
    expected = [naive_lowest(part, group - keep) for part in score.split(group, 1)]
    assert torch.equal(mask, torch.cat(expected, 1))
    assert masks.conforms(mask, keep, group) == 1.0
    assert keep == 1 or masks.conforms(mask, keep - 1, group) == 0.0


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_a_fraction_is_taken_of_every_row(rows, columns, seed, sparsity):
    score = torch.rand(rows, columns, generator=generator(seed)).to(torch.float16)
    assert torch.equal(masks.Pattern(sparsity).mask(score), naive_lowest(score, round(sparsity * columns)))


def test_infinite_scores_are_ranked_and_nan_is_refused():
    score = torch.tensor([[float("inf"), -1.0, float("inf"), float("-inf")]])
    assert masks.Pattern(0.5).mask(score).tolist() == [[True, False, True, False]]
    score[0, 1] = float("nan")
    for pattern in ("50%", "2:4"):
        with pytest.raises(SQFTError, match="score holds NaN"):
            masks.Pattern.parse(pattern).mask(score)


def test_conformance_is_the_share_of_groups_with_at_most_n_kept():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0]]).bool()
    assert masks.conforms(mask, 2, 4) == 0.75
    assert masks.conforms(mask, 1, 4) == 0.5
    assert masks.conforms(mask.float() * -3, 4, 8) == 0.5  # a weight: what is not zero is kept
    assert masks.conforms(mask, 2, 3) == 0.0
    assert masks.conforms(mask[:0], 2, 4) == 1.0


def test_nonzero_mask_counts_both_zeros_as_pruned():
    assert masks.nonzero_mask(torch.tensor([[0.0, -0.0, 1e-30, -1.0]])).tolist() == [[False, False, True, True]]


def test_no_other_file_tests_a_weight_for_zero():
    root, packages = Path(masks.__file__).parents[1], ("sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext")
    test = re.compile(r"\bweights?(\[[^\]]*\])? [!=]= 0\b|steps\([^)]*\) [!=]= 0\b|-\(-[^()]+ // 8\)")
    files = [file for package in packages for file in (root / package).rglob("*.py")]
    found = {file.relative_to(root).as_posix() for file in files if test.search(file.read_text(encoding="utf-8"))}
    # the zero test and mask bytes; the bits of a patch of codes
    assert found == {"sqft_plugins/mask.py", "sqft_plugins/grid/patch.py"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_numeric_mask_is_the_nonzero_mask_as_numbers(dtype):
    weight = torch.tensor([[0.0, -0.0, 2.5, -1e-7, torch.finfo(dtype).tiny / 2]], dtype=dtype)
    expected = masks.nonzero_mask(weight).to(dtype)
    assert torch.equal(masks.numeric_mask(weight), expected)
    out = torch.empty_like(weight)
    assert masks.numeric_mask(weight, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("weight", [[[0.0, -0.0, 3.0, 0.5]], [[0, 0, -3, 15]]])
def test_lost_zeros_are_counted_in_floats_and_in_int4_steps(weight):
    mask = torch.tensor([[False, True, True, False]])
    weight = torch.tensor(weight, dtype=torch.float32 if isinstance(weight[0][0], float) else torch.int8)
    before = weight.clone()
    assert masks.lost_zeros(weight, mask) == 1
    assert torch.equal(weight, before)


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
