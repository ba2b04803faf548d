"""Which type a weight gets, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_ext.blocks import TensorType
from gguf_ext.errors import BlockSizeError, NonFiniteWeightError, ScaleNotExactError, ScaleRangeError
from gguf_ext.write.transcode import block_bytes, block_type, float_bytes, matrix_type
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, int4_weight, round_to_nearest


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    group=st.sampled_from([32, 64, 128, PER_CHANNEL]),
    symmetric=st.booleans(),
    shift=st.sampled_from([0.0, 0.3, -2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_every_grid_is_held_exactly(seed, group, symmetric, shift, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(5, 256, generator=generator) + shift).to(dtype)
    mask = torch.rand(5, 256, generator=generator) > 0.5
    quantized = round_to_nearest(weight, mask, group, symmetric)
    kind = block_type(quantized, "w")
    theirs = quants.dequantize(block_bytes(quantized, kind), GGMLQuantizationType(int(kind)))
    np.testing.assert_array_equal(theirs, quantized.dequantize().numpy())
    assert not theirs[~mask.numpy()].any()
    if symmetric:
        assert kind is TensorType.Q4_0


def test_a_whole_tensor_decides_between_q4_and_q5():
    codes = torch.full((2, 64), 8, dtype=torch.uint8)
    weight = int4_weight(codes, torch.ones(2, 2), torch.full((2, 2), 8, dtype=torch.uint8))
    assert block_type(weight, "w") is TensorType.Q4_0
    weight.codes[1, 63] = 15
    assert block_type(weight, "w") is TensorType.Q4_0  # step 7
    weight.zero_point[1, 1] = 7
    assert block_type(weight, "w") is TensorType.Q5_0  # step 8
    weight.zero_point[1, 1] = 0
    weight.codes[1, 63] = 0
    assert block_type(weight, "w") is TensorType.Q5_0  # the other codes of the group: step 8


def _weight(columns: int = 64, groups: int = 2, scale: float = 1.0) -> QuantizedWeight:
    codes = torch.full((2, columns), 8, dtype=torch.uint8)
    return int4_weight(codes, torch.full((2, groups), scale), torch.full((2, groups), 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (_weight(columns=48, groups=1), BlockSizeError, "layers.0: in=48 in groups of 48"),
        (_weight(columns=64, groups=4), BlockSizeError, "groups of 16"),
        (_weight(scale=1 + 2**-12), ScaleNotExactError, "scale=1.000244140625 and 3 more"),
        (_weight(scale=2**-26), ScaleNotExactError, "not exact in fp16"),
        (_weight(scale=70000.0), ScaleRangeError, "scale=70000 is above 65504"),
        (_weight(scale=float("nan")), NonFiniteWeightError, "scale is NaN"),
    ],
)
def test_what_no_block_holds_is_refused(weight, error, words):
    with pytest.raises(error, match=words) as caught:
        block_type(weight, "layers.0")
    assert "\n" not in str(caught.value)


def test_float_types():
    exact = torch.tensor([[0.5, 65504.0], [2.0**-24, -1.0]])
    assert matrix_type(exact, "w") is TensorType.F16
    assert matrix_type(exact.bfloat16() * 2.0**-30, "w") is TensorType.BF16
    assert matrix_type(torch.tensor([[70000.0 * 2**100]]).bfloat16(), "w") is TensorType.BF16
    assert matrix_type(torch.full((1, 2), 1 / 3), "w") is TensorType.F32
    assert matrix_type(torch.full((1, 2), 1 / 3).half(), "w") is TensorType.F16
    assert matrix_type(exact[0], "w") is TensorType.F32  # a vector
    assert matrix_type(exact, "w", "f32") is TensorType.F32
    assert matrix_type(exact, "w", "bf16") is TensorType.BF16
    raw = float_bytes(exact, TensorType.F16)
    np.testing.assert_array_equal(raw.view(np.float16), exact.numpy())
    assert float_bytes(exact[0], TensorType.F32).shape == (1, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value):
    with pytest.raises(NonFiniteWeightError, match=r"model\.w: weight holds NaN or infinity"):
        matrix_type(torch.tensor([[1.0, value]]), "model.w")


def test_f16_that_would_overflow_is_refused():
    with pytest.raises(NonFiniteWeightError, match="above 65504"):
        matrix_type(torch.tensor([[1e5]]), "w", "f16")
