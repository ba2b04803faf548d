"""Folders with other codes: a merge that changes nothing changes no code, also where two codes have one value; what is
written is the folder with other bytes in the place of codes."""

from __future__ import annotations

import torch

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.compare import compare_folders
from sqft_plugins.checkpoint.recode import Recoded, write_codes
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.grid import MXFP4, Grid, QuantizedWeight


class OneWeight:
    """A model of one weight, whose second group has the scale 0."""

    weight = QuantizedWeight(
        torch.tensor([[8, 9, 3, 5], [0, 8, 15, 1]], dtype=torch.uint8), Grid(MXFP4, torch.tensor([[1.0, 0], [-1, 2]]))
    )

    def __init__(self) -> None:
        self.path = "model.gguf"

    def quantized(self, module: str) -> QuantizedWeight:
        return self.weight

    def mask(self, module: str) -> None:
        return None


def test_a_code_of_the_same_value_stays_the_models_own() -> None:
    model = OneWeight()
    again = model.weight.grid.quantize(model.weight.dequantize())  # 0 for -0, 0 where the scale is 0
    assert not torch.equal(again, model.weight.codes)
    assert torch.equal(Recoded(model, {"m": again}).codes["m"], model.weight.codes)  # type: ignore[arg-type]


def test_a_code_of_another_value_is_the_new_one() -> None:
    model = OneWeight()
    moved = torch.tensor([[0, 10, 7, 7], [0, 8, 0, 1]], dtype=torch.uint8)
    recoded = Recoded(model, {"m": moved})  # type: ignore[arg-type]
    assert recoded.codes["m"].tolist() == [[8, 10, 3, 5], [0, 8, 0, 1]]
    assert recoded.quantized("m").codes is recoded.codes["m"]
    assert torch.equal(recoded.quantized("m").dequantize(), recoded.quantized("m").grid.dequantize(moved))


def test_shards_and_their_index_stay_as_they_are(tiny_llama, tmp_path) -> None:
    load_model(tiny_llama).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    quantize_folder(tmp_path / "float", tmp_path / "base")
    base = ModelFolder(tmp_path / "base")
    codes = {module: base.quantized(module).codes ^ 1 for module in base.int4.modules}
    (tmp_path / "merged").mkdir()
    write_codes(Recoded(base, codes), tmp_path / "merged", None)

    merged = ModelFolder(tmp_path / "merged")
    assert {file.name for file in merged.files.values()} == {file.name for file in base.files.values()}
    assert len(set(merged.files.values())) > 2
    for name in ("config.json", "model.safetensors.index.json"):
        assert (merged.path / name).read_bytes() == (base.path / name).read_bytes()
    report = compare_folders(base.path, merged.path)
    assert (report.ok, report.recoded, report.changed) == (True, len(codes), report.weights)
