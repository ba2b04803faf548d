"""Every `WeightSource` answers alike: weights and masks are [out, in], whatever the files hold."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.checkpoint.recode import Recoded, write_codes
from sqft_plugins.checkpoint.source import WeightSource
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.requantize import codes_changed
from sqft_plugins.structure import structure_of_folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_float_int4_and_compact_folders_answer_alike(tiny_model, tmp_path, family):
    tiny_model(family).save_pretrained(tmp_path / "float")
    prune_folder(tmp_path / "float", tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", symmetric=False)
    compact_folder(tmp_path / "int4", tmp_path / "compact")

    sources: list[WeightSource] = [ModelFolder(tmp_path / name) for name in ("pruned", "int4", "compact")]
    for module, shape in structure_of_folder(tmp_path / "float").shapes.items():
        exact = sources[0].weight(module)
        for source in sources:
            assert source.weight_shape(module) == source.weight(module).shape == shape
            mask = source.mask(module)
            assert mask is not None
            assert torch.equal(mask, exact != 0)
            assert not source.weight(module)[~mask].any()
        assert sources[1].quantized(module).equals(sources[2].quantized(module))
        with pytest.raises(CheckpointError, match="has no codes of"):
            sources[0].quantized(module)


def test_a_folder_with_other_codes_reads_as_it_is_written(int4, tmp_path):
    folder = ModelFolder(int4)
    changed, *others = folder.int4.modules
    stored, mask = folder.quantized(changed), folder.mask(changed)
    assert mask is not None
    codes = torch.where(mask, 15 - stored.codes, stored.codes)
    recoded = Recoded(folder, {changed: codes})

    (tmp_path / "written").mkdir()
    assert folder.stamp is not None
    write_codes(recoded, tmp_path / "written", folder.stamp)
    written = ModelFolder(tmp_path / "written")
    assert torch.equal(written.quantized(changed).codes, codes)
    assert not torch.equal(codes, stored.codes)
    for module in (changed, *others):
        assert recoded.quantized(module).equals(written.quantized(module))
        assert torch.equal(recoded.weight(module), written.weight(module))
        assert recoded.weight_shape(module) == written.weight_shape(module)
        assert recoded.module_bytes(module) == written.module_bytes(module)
    assert codes_changed(recoded, folder) == int((codes != stored.codes).sum()) / int(mask.sum())
