"""Codes of every type, against layouts written out weight by weight, and against ggml's own `to_float`.

Run it: `pytest tests/gguf_ext/blocks`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_blocks import BITS, FROZEN, naive_codes

from gguf_ext.blocks import TensorType, codes_of, dequantize, grid_kind, grid_of, replace_codes, row_bytes, unpack
from gguf_ext.blocks.codec import LAYOUTS
from gguf_ext.blocks.proof import compare_with_ggml, random_blocks
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import GGUFError
from sqft_plugins.grid import MXFP4, Grid

T = TensorType
KINDS = sorted(LAYOUTS)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request) -> TensorType:
    return request.param


def random(kind: TensorType, count: int, seed: int = 0) -> np.ndarray:
    return random_blocks(kind, count, np.random.default_rng(seed))


def test_a_hundred_thousand_blocks_are_what_ggml_makes_of_them(kind):
    (found,) = compare_with_ggml([kind], 100_000)
    assert (found.blocks, found.different, found.lost) == (100_000, 0, 0)
    assert found.weights == 100_000 * BLOCKS[kind][0]
    assert (found.nan > 0) == (kind not in (T.MXFP4, T.NVFP4))  # whose scales are never NaN in ggml


def test_codes_are_where_ggml_has_them(kind):
    blocks = random(kind, 300)
    np.testing.assert_array_equal(codes_of(blocks, kind), naive_codes(kind, blocks))


def test_other_codes_leave_every_other_byte_alone(kind):
    blocks = random(kind, 300)
    codes = np.random.default_rng(1).integers(0, 2 ** BITS[kind], (300, BLOCKS[kind][0]), np.uint8)
    before, given = blocks.copy(), codes.copy()
    changed = replace_codes(blocks, codes, kind)
    np.testing.assert_array_equal(naive_codes(kind, changed), codes)
    for start, end in FROZEN[kind]:
        np.testing.assert_array_equal(changed[:, start:end], blocks[:, start:end])
    np.testing.assert_array_equal(blocks, before)  # what was given is not written to
    np.testing.assert_array_equal(codes, given)


def test_the_frozen_bytes_and_the_codes_are_all_there_is(kind):
    weights, size = BLOCKS[kind]
    assert sum(end - start for start, end in FROZEN[kind]) + weights * BITS[kind] // 8 == size


def test_rows_have_blocks_one_after_the_other(kind):
    weights, size = BLOCKS[kind]
    blocks = random(kind, 12)
    raw = blocks.reshape(4, 3 * size)
    codes, grid = unpack(raw, kind)
    assert codes.shape == (4, 3 * weights)
    assert codes.dtype == torch.uint8
    np.testing.assert_array_equal(codes.numpy(), naive_codes(kind, blocks).reshape(4, -1))
    assert grid.groups == 3 * weights // grid.kind.group_size
    assert raw.shape[1] == row_bytes(3 * weights, kind)
    one_by_one = np.concatenate([dequantize(block[None], kind)[0] for block in blocks])
    np.testing.assert_array_equal(dequantize(raw, kind).reshape(-1).view(np.uint32), one_by_one.view(np.uint32))


def test_an_adapter_that_changes_nothing_changes_no_value(kind):
    """The weights themselves are the nearest to themselves, whatever the scales, so long as they are numbers."""
    codes, grid = unpack(random(kind, 2000), kind)
    finite = torch.isfinite(grid.dequantize(codes)).all(1) & torch.isfinite(grid.scale).all(1)
    assert finite.float().mean() > 0.8
    codes, grid = codes[finite], grid.take(finite)
    weight = grid.dequantize(codes)
    assert torch.equal(grid.dequantize(grid.quantize(weight)), weight)


def test_only_grids_with_a_zero_say_so(kind):
    """A mask needs 0 among the values of every group."""
    codes, grid = unpack(random(kind, 500), kind)
    every = torch.arange(2 ** BITS[kind], dtype=torch.uint8)
    finite = torch.isfinite(grid.scale).all(1) & (grid.scale != 0).all(1)
    values = torch.stack([grid.take(finite).dequantize(torch.full_like(codes[finite], code)) for code in every])
    has = bool((values == 0).any(0).all())
    assert grid_kind(kind).has_zero == has
    assert has == (kind in (T.Q4_0, T.Q5_0, T.Q8_0, T.Q3_K, T.Q6_K, T.MXFP4, T.NVFP4))


def test_kinds_are_called_as_their_types():
    names = {kind: grid_kind(kind).name for kind in KINDS}
    assert names.pop(T.MXFP4) == "gguf_mxfp4"  # whose code 8 is 0, where others have -0
    assert names.pop(T.NVFP4) == "gguf_nvfp4"
    assert names == {kind: kind.name.lower() for kind in names}


def test_ggmls_e2m1_has_no_negative_zero():
    """Whichever of both tables was used first: as numbers they are equal."""
    others = Grid(MXFP4, torch.ones(1, 1)).dequantize(torch.full((1, 32), 8, dtype=torch.uint8))
    raw = np.zeros((1, 17), np.uint8)
    raw[0] = [127, *[0x88] * 16]
    assert not np.signbit(dequantize(raw, T.MXFP4)).any()
    assert torch.signbit(others).all()


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16])
def test_float_rows_read_as_torch_reads_them(kind):
    dtype = {T.F32: torch.float32, T.F16: torch.float16, T.BF16: torch.bfloat16}[kind]
    weights = torch.randn(3, 10).to(dtype)
    raw = weights.view(torch.uint8).numpy()
    assert raw.shape[1] == row_bytes(10, kind)
    np.testing.assert_array_equal(dequantize(raw, kind), weights.float().numpy())


def test_codes_that_a_type_does_not_have_are_refused(kind):
    if BITS[kind] == 8:
        return
    weights, size = BLOCKS[kind]
    codes = np.zeros((1, weights), np.uint8)
    codes[0, -1] = 2 ** BITS[kind]
    with pytest.raises(GGUFError, match=f"code={2 ** BITS[kind]} is too large for {kind.name}: use 0"):
        replace_codes(np.zeros((1, size), np.uint8), codes, kind)


@pytest.mark.parametrize("shape", [(1, 256), (2, 512), (3, 256)])
def test_codes_of_another_shape_are_refused(shape):
    raw = np.zeros((2, row_bytes(256, T.Q4_K)), np.uint8)
    with pytest.raises(GGUFError, match="do not fit 2 rows of 144 bytes of Q4_K"):
        replace_codes(raw, np.zeros(shape, np.uint8), T.Q4_K)


def test_rows_that_are_mapped_read_only_are_read(tmp_path):
    (tmp_path / "raw").write_bytes(random(T.Q6_K, 4).tobytes())
    raw = np.memmap(tmp_path / "raw", np.uint8, "r", shape=(2, 420))
    assert codes_of(raw, T.Q6_K).shape == (2, 512)
    assert grid_of(raw, T.Q6_K).scale.shape == (2, 32)
