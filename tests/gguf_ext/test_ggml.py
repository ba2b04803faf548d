"""ggml's conversions, called as llama.cpp calls them."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from gguf_ext.blocks import TensorType, dequantize
from gguf_ext.blocks.codec import LAYOUTS
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import GGUFError
from gguf_ext.ggml import quantize, to_float


def weights(rows: int = 4, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ1_M", "TQ2_0"])
def test_to_float_of_a_codebook_is_what_the_gguf_package_makes_of_it(name):
    """It takes any type that ggml has, by its number."""
    kind = GGMLQuantizationType[name]
    size = {"IQ2_XXS": 66, "IQ1_M": 56, "TQ2_0": 66}[name]
    raw = np.random.default_rng(0).integers(0, 256, (50, size), np.uint8)
    ours, theirs = to_float(raw, kind, 256, size), quants.dequantize(raw, kind)
    both = np.isfinite(ours) & np.isfinite(theirs)
    assert both.mean() > 0.8
    np.testing.assert_allclose(ours[both], theirs[both], rtol=1e-6)


def test_another_block_than_ggml_has_is_refused():
    with pytest.raises(GGUFError, match="has 32 weights in 18 bytes, not 32 in 20"):
        to_float(np.zeros((1, 20), np.uint8), TensorType.Q4_0, 32, 20)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("matrix", [False, True])
def test_what_ggml_quantizes_is_near_the_weights(kind, matrix):
    weight = weights()
    importance = np.linspace(0.5, 2, weight.shape[1], dtype=np.float32) if matrix else None
    raw = quantize(weight, kind, *BLOCKS[kind], importance)
    error = np.abs(dequantize(raw, kind) - weight).mean() / np.abs(weight).mean()
    assert error < {2: 0.4, 3: 0.2}.get(8 * BLOCKS[kind][1] // BLOCKS[kind][0], 0.13)


def test_an_importance_matrix_moves_the_error_to_where_it_matters_less():
    weight = weights(64)
    importance = np.ones(weight.shape[1], np.float32)
    importance[::2] = 100
    block = BLOCKS[TensorType.Q2_K]
    plain, told = (
        np.square(dequantize(quantize(weight, TensorType.Q2_K, *block, matrix), TensorType.Q2_K) - weight)[
            :, ::2
        ].mean()
        for matrix in (None, importance)
    )
    assert told < 0.8 * plain


def test_what_ggml_would_not_look_at_is_refused():
    weight = weights()
    weight[1, 7] = np.nan
    block = BLOCKS[TensorType.Q4_0]
    with pytest.raises(GGUFError, match="holds NaN or infinity"):
        quantize(weight, TensorType.Q4_0, *block)
    with pytest.raises(GGUFError, match="needs an importance matrix"):
        quantize(weights(), GGMLQuantizationType.IQ2_XXS, 256, 66)
    with pytest.raises(GGUFError, match="has 32 weights in 18 bytes, not 32 in 10"):
        quantize(weights(), TensorType.Q4_0, 32, 10)
    with pytest.raises(GGUFError, match="in=300 is not a multiple of 32"):
        quantize(weights(columns=300), TensorType.Q4_0, *block)
    with pytest.raises(GGUFError, match=r"shape \(7,\) is not one number for each of 512"):
        quantize(weights(), TensorType.Q4_0, *block, np.ones(7, np.float32))
    with pytest.raises(GGUFError, match="rows of 20 bytes are no blocks of 18"):
        to_float(np.zeros((2, 20), np.uint8), TensorType.Q4_0, *block)
