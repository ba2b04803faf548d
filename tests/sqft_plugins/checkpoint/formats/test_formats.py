"""Which format reads a folder, and that a new one needs no change of `ModelFolder`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder, formats
from sqft_plugins.checkpoint.formats import Compact, Int4Format, PackQuantized, find_format
from sqft_plugins.checkpoint.formats.autogptq import AutoGPTQ
from sqft_plugins.checkpoint.formats.awq import AWQ
from sqft_plugins.checkpoint.formats.fp8 import FineGrainedFP8, FloatQuantized
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight, round_to_nearest


def test_a_folder_is_recognised_by_its_config_or_by_autogptqs_file_beside_it(tmp_path):
    for config, kind in (
        (None, PackQuantized),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, PackQuantized),
        ({"quant_method": "sqft", "format": "compact"}, Compact),
        ({"quant_method": "gptq", "bits": 4}, AutoGPTQ),
        ({"quant_method": "awq", "bits": 4}, AWQ),
        ({"quant_method": "fp8"}, FineGrainedFP8),
        ({"quant_method": "compressed-tensors", "format": "naive-quantized"}, FloatQuantized),
    ):
        assert find_format(tmp_path, config) == (kind, config)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert find_format(tmp_path, None) == (AutoGPTQ, {"quant_method": "gptq", "bits": 4})
    assert find_format(None, None) == (PackQuantized, None)


def test_an_unknown_format_is_refused_when_its_weights_are_read_and_not_before(int4, tmp_path):
    copy = shutil.copytree(int4, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "hqq"}}))
    folder = ModelFolder(copy)
    assert folder.tensor_names
    with pytest.raises(CheckpointError, match=r"as hqq/None: this release reads .*pack-quantized, sqft/compact, gptq"):
        _ = folder.int4


class Doubled(Int4Format):
    """A format of another program: the float weights, twice as large."""

    name = "doubled"
    declared = "another/doubled"
    marks = (".weight",)
    endings = (".weight",)

    @property
    def grid(self) -> GridStamp:
        return GridStamp(group_size=32)

    def shape(self, module: str) -> tuple[int, int]:
        rows, columns = self._tensors.spec(f"{module}.weight").shape
        return rows, columns

    def scale_name(self, module: str) -> str:
        return f"{module}.weight"

    def weight(self, module: str) -> QuantizedWeight:
        return round_to_nearest(self._tensors.tensor(f"{module}.weight") / 2)


def test_a_new_format_is_a_class_in_the_list(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Doubled))
    copy = shutil.copytree(pruned, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    quantization = {"quant_method": "another", "format": "doubled"}
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    folder, module = ModelFolder(copy), "model.layers.0.mlp.up_proj"
    assert (folder.int4.name, folder.grid) == ("doubled", GridStamp(group_size=32))
    assert module in folder.int4
    expected = round_to_nearest(ModelFolder(pruned).weight(module) / 2)
    assert torch.equal(folder.quantized(module).codes, expected.codes)
    assert torch.equal(folder.weight(module), expected.dequantize())
