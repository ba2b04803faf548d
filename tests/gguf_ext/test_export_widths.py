"""Folders of other widths than INT4: exported without loss where Q4_0, Q5_0 or Q8_0 holds their steps, else refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.blocks import TensorType
from gguf_ext.errors import GGUFError
from gguf_ext.estimate import estimate_gguf
from gguf_ext.write.transcode import block_bytes, block_type
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.grid import UNIFORM, make_grid, round_to_nearest

HELD = {(2, True): "Q4_0", (2, False): "Q4_0", (3, True): "Q4_0", (3, False): "Q4_0", (5, True): "Q5_0"}
HELD |= {(5, False): "Q8_0", (6, True): "Q8_0", (6, False): "Q8_0", (8, True): "Q8_0"}


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_width_is_held_exactly_or_refused(bits, symmetric) -> None:
    gguf_quants = pytest.importorskip("gguf.quants")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight[:, :32] = weight[:, :32].abs()  # an asymmetric grid then uses all its steps on one side
    found = round_to_nearest(weight, None, 32, symmetric, UNIFORM[bits])
    if (bits, symmetric) not in HELD:
        with pytest.raises(GGUFError, match=rf"blk\.0: int{bits} has steps outside -128\.\.127, the range of Q8_0"):
            block_type(found, "blk.0")
        return
    kind = block_type(found, "blk.0")
    assert kind.name == HELD[bits, symmetric]
    raw = block_bytes(found, kind)
    np.testing.assert_array_equal(gguf_quants.dequantize(raw, kind), found.dequantize().numpy())


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_the_estimate_says_what_the_export_does(pruned, tmp_path, bits) -> None:
    quantize_folder(pruned, tmp_path / "model", bits=bits)
    folder = ModelFolder(tmp_path / "model")
    types = estimate_gguf(pruned, folder.int4.modules, folder.grid)["types"]
    assert types[HELD[bits, True]] == len(folder.int4.modules)


def test_a_symmetric_int5_uses_all_steps_of_q5_0() -> None:
    grid = make_grid(torch.ones(1, 32), kind=UNIFORM[5])
    codes = torch.arange(32, dtype=torch.uint8).unsqueeze(0)
    steps = grid.steps(codes)
    assert (int(steps.min()), int(steps.max())) == (-16, 15)
    assert TensorType.Q5_0.holds_steps


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_a_folder_of_another_width_is_a_file_to_the_bit(pruned, tmp_path, bits) -> None:
    quantize_folder(pruned, tmp_path / "model", bits=bits)
    report = export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert report.exact
    assert report.types[HELD[bits, True]] == len(ModelFolder(tmp_path / "model").int4.modules)
    found = verify_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert found.exact
    assert found.pruned > 0
    assert found.pruned_nonzero == 0


def test_an_asymmetric_int8_has_no_type(pruned, tmp_path) -> None:
    quantize_folder(pruned, tmp_path / "model", bits=8, symmetric=False)
    folder = ModelFolder(tmp_path / "model")
    with pytest.raises(GGUFError, match=r"INT8.* has steps outside -128"):
        estimate_gguf(pruned, folder.int4.modules, folder.grid)
