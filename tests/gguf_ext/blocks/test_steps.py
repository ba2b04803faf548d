"""INT4 weights in Q4_0 and Q5_0, to the bit, against ggml's dequantizer in the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gguf_ext.blocks import BLOCK, TensorType, decode, dequantize, encode, row_bytes
from gguf_ext.errors import BlockSizeError

RANGES = {TensorType.Q4_0: (-8, 7), TensorType.Q5_0: (-16, 15)}


@st.composite
def blocks(draw):
    """(kind, steps [out, in], scale fp16 [out, groups])."""
    kind = draw(st.sampled_from(sorted(RANGES)))
    rows, groups, width = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from([32, 64, 128, 96]))
    low, high = RANGES[kind]
    steps = draw(hnp.arrays(np.int8, (rows, groups * width), elements=st.integers(low, high)))
    scale = draw(hnp.arrays(np.float16, (rows, groups), elements=st.floats(2**-17, 60000, width=16)))
    return kind, steps, scale


@settings(max_examples=80, deadline=None)
@given(blocks())
def test_encode_decode_and_ggml_agree(drawn):
    kind, steps, scale = drawn
    raw = encode(steps, scale, kind)
    assert raw.shape == (steps.shape[0], row_bytes(steps.shape[1], kind))
    again, d = decode(raw, kind)
    np.testing.assert_array_equal(again, steps)
    repeat = steps.shape[1] // BLOCK // scale.shape[1]
    np.testing.assert_array_equal(d, np.repeat(scale, repeat, axis=1))
    naive = steps.astype(np.float32) * np.repeat(scale.astype(np.float32), steps.shape[1] // scale.shape[1], axis=1)
    ours = dequantize(raw, kind)
    theirs = quants.dequantize(raw, GGMLQuantizationType(int(kind)))
    np.testing.assert_array_equal(ours.view(np.uint32), naive.view(np.uint32))
    np.testing.assert_array_equal(ours, theirs)
    assert not ours[steps == 0].any()


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(BlockSizeError, match="in=40 is not a multiple of 32"):
        encode(np.zeros((1, 40), np.int8), np.ones((1, 1), np.float16), TensorType.Q4_0)
    with pytest.raises(BlockSizeError, match="groups=4"):  # groups of 16
        encode(np.zeros((1, 64), np.int8), np.ones((1, 4), np.float16), TensorType.Q4_0)
