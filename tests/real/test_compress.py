"""Compression of the real model, on a sample of its blocks; benchmarks/pruning.py does it on all, for every pruner."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.compress.drive import Compressed, Compression, InMemory
from sqft_plugins.compress.float_model import Calibration, FloatModel
from sqft_plugins.compress.gptq import GPTQ
from sqft_plugins.compress.report import output_error, relative_error
from sqft_plugins.compress.round_to_nearest import RoundToNearest
from sqft_plugins.compress.sparsegpt import SparseGPT
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.mask import Pattern, nonzero_mask

BLOCKS = (0, 17)


def visited(source: FloatModel, one) -> list[str]:
    """Calls `one(module, weight, hessian)` for the layers of some blocks, nothing written → their names."""
    modules = [name for name in source.modules if source.structure.block(name) in BLOCKS]
    tokens = Calibration(sequences=16, length=128).tokens(source.path, "hessian", source.skeleton)
    for index, block in enumerate(source.skeleton.model.base_model.layers):
        source.skeleton.load_block(index, block)

    def method(module: str, weight: torch.Tensor, hessian: torch.Tensor | None) -> Compressed:
        made = one(module, weight, hessian)
        return Compressed(made, {"sparsity": 0.0, "error": relative_error(weight, made)}, {})

    rows = Compression("look", modules, "hessian", tokens, method).run(InMemory(source.skeleton.model))
    return [row["name"] for row in rows]


@pytest.mark.once
def test_gptqs_output_error_is_below_roundings_and_no_zero_is_lost(demo) -> None:
    out, _ = demo
    source = FloatModel(out / "pruned")

    def one(module: str, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        mask = ModelFolder(out / "pruned").mask(module)
        assert torch.equal(mask, nonzero_mask(weight))
        for symmetric in (True, False):
            grid = GridStamp(group_size=32, symmetric=symmetric)
            ours = GPTQ().quantize(weight, mask, hessian, grid)
            rounded = RoundToNearest().quantize(weight, mask, None, grid)
            assert not ours.dequantize()[~mask].any(), module
            by_us, by_rounding = (output_error(weight, q.dequantize(), hessian) for q in (ours, rounded))
            assert by_us < by_rounding, (module, by_us, by_rounding)
        return ours.dequantize()

    assert len(visited(source, one)) == 14


@pytest.mark.slow  # a minute or two; tests/sqft_plugins/compress/test_sparsegpt.py asks the same of a small layer
def test_sparsegpt_disturbs_the_outputs_less_than_wanda_does(gemma) -> None:
    def one(module: str, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        norm = hessian.diagonal().sqrt()
        for pattern in (Pattern(0.5), Pattern.parse("2:4")):
            ours, _ = SparseGPT().prune(weight, hessian, pattern)
            wanda, _ = Wanda().prune(weight, norm, pattern)
            assert output_error(weight, ours, hessian) < output_error(weight, wanda, hessian), module
        return ours

    assert len(visited(FloatModel(gemma), one)) == 14
