"""Codes of every width in words: as compressed-tensors packs them since 0.20, and read also as it did before."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqft_plugins import grid
from sqft_plugins.errors import GridError

settings.register_profile("packing", max_examples=40, deadline=None)
settings.load_profile("packing")
WIDTHS = st.sampled_from(sorted(grid.UNIFORM))
IS_DENSE = tuple(map(int, version("compressed-tensors").split(".")[:2])) >= (0, 20)


def some_codes(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def naive_pack(codes: torch.Tensor, bits: int, padded: bool = False) -> torch.Tensor:
    """Bit by bit. padded: no code over the end of a word."""
    rows, columns = codes.shape
    each = 32 // bits
    words = -(-columns // each) if padded else -(-columns * bits // 32)
    packed = [[0] * words for _ in range(rows)]
    for row in range(rows):
        for column in range(columns):
            for bit in range(bits):
                place = 32 * (column // each) + bits * (column % each) + bit if padded else bits * column + bit
                packed[row][place // 32] |= (int(codes[row, column]) >> bit & 1) << place % 32
    wide = torch.tensor(packed, dtype=torch.int64)
    return torch.where(wide >= 2**31, wide - 2**32, wide).to(torch.int32)


@given(st.integers(1, 4), st.integers(1, 70), WIDTHS, st.integers(0, 2**31))
def test_pack_equals_a_naive_packer_and_unpack_undoes_it(rows, columns, bits, seed):
    codes = some_codes(rows, columns, bits, seed)
    packed = grid.pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, grid.packed_words(columns, bits))
    assert torch.equal(packed, naive_pack(codes, bits))
    assert torch.equal(grid.unpack(packed, columns, bits), codes)


@given(st.integers(1, 4), st.integers(1, 4), WIDTHS, st.integers(0, 2**31))
def test_padded_rows_are_read(rows, groups, bits, seed):
    codes = some_codes(rows, 32 * groups, bits, seed)
    packed = naive_pack(codes, bits, padded=True)
    assert packed.shape[1] == grid.padded_words(32 * groups, bits)
    assert torch.equal(grid.unpack(packed, 32 * groups, bits), codes)


@given(st.integers(1, 3), st.integers(1, 3), WIDTHS, st.integers(0, 2**31))
def test_it_is_the_packing_of_compressed_tensors(rows, groups, bits, seed):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = some_codes(rows, 32 * groups, bits, seed)
    theirs = pack_to_int32((codes.int() - 2 ** (bits - 1)).to(torch.int8), bits)
    assert torch.equal(grid.unpack(theirs, 32 * groups, bits), codes)
    if IS_DENSE or 32 % bits == 0:
        assert torch.equal(grid.pack(codes, bits), theirs)
    else:
        assert theirs.shape[1] == grid.padded_words(32 * groups, bits)


@given(st.integers(1, 40), st.integers(1, 4), WIDTHS, st.integers(0, 2**31))
def test_zero_points_pack_along_the_rows(rows, groups, bits, seed):
    zero_point = some_codes(rows, groups, bits, seed)
    packed = grid.pack_zero_point(zero_point, bits)
    assert packed.shape == (grid.packed_words(rows, bits), groups)
    assert torch.equal(grid.unpack_zero_point(packed, rows, bits), zero_point)


@pytest.mark.parametrize("bits", grid.UNIFORM)
def test_pack_refuses_what_is_no_code(bits):
    if bits == 8:
        return  # every uint8 is a code
    with pytest.raises(GridError, match=rf"code={2**bits} is not an INT{bits} code: use 0..{2**bits - 1}"):
        grid.pack(torch.full((1, 8), 2**bits, dtype=torch.uint8), bits)
