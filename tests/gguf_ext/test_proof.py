"""What llama.cpp dequantizes of a merged file are the weights of the last training step, and what is not is found.

pytest tests/gguf_ext/test_proof.py
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers_quantize import quantized

from gguf_ext.errors import AdapterError
from gguf_ext.merge import merge_file, merges_of
from gguf_ext.proof import prove_merge
from gguf_ext.reader import GGUFFile
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, open_model
from sqft_plugins.cli import main
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(24)]


@pytest.fixture(scope="module")
def place(make_folder, tmp_path_factory):
    """base.gguf (Q4_K_M of a tiny Llama whose widths 256 divides), an elastic adapter, merged.gguf at rank 4."""
    place = tmp_path_factory.mktemp("proof")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 640}
    quantized(make_folder("llama", place / "float" / "model", **sizes), place / "base.gguf", "Q4_K_M")
    settings = AdapterSettings.make({"rank": 8, "alpha": 16.0, "rank_choices": [8, 4]})
    training = TrainSettings.make({"steps": 3, "batch_size": 4, "learning_rate": 1e-1, "dtype": "float32"})
    train_adapter(place / "base.gguf", place / "adapter", EXAMPLES, settings, training)
    merge_folder(place / "base.gguf", place / "adapter", place / "merged.gguf", 4)
    return place


def test_ggml_has_the_weights_of_training(place):
    report = prove_merge(place / "base.gguf", place / "merged.gguf", place / "adapter")
    assert report.ok
    assert report.equal == report.weights > 0
    saved = SavedAdapter(place / "adapter")
    tuned, ranks = saved.load(load_model(place / "base.gguf", torch.float32), 4)
    assert report.modules == len(ranks)
    assert set(ranks.values()) == {4}
    merged = open_model(place / "merged.gguf")
    for module, weight in saved.tuner.quantized(tuned).items():
        assert torch.equal(merged.weight(module), weight.dequantize())


def test_a_merge_at_another_rank_is_not_this_one(place, tmp_path):
    """The codes of rank 8 under a note that says 4."""
    merge_folder(place / "base.gguf", place / "adapter", tmp_path / "eight.gguf", 8)
    base, eight = open_model(place / "base.gguf"), open_model(tmp_path / "eight.gguf")
    (note,) = merges_of(GGUFFile(place / "merged.gguf"))
    base.write_codes(tmp_path / "odd.gguf", {m: eight.quantized(m).codes for m in note["ranks"]}, note)
    report = prove_merge(place / "base.gguf", tmp_path / "odd.gguf", place / "adapter")
    assert not report.ok
    assert {item.name for item in report.differences} <= set(note["ranks"])
    assert report.equal < report.weights


def test_codes_that_are_not_of_the_adapter_are_found(place, tmp_path):
    read = GGUFFile(place / "base.gguf")
    merged, (note,) = open_model(place / "merged.gguf"), merges_of(GGUFFile(place / "merged.gguf"))
    tensors = {merged.int4.tensor_of(module) for module in note["ranks"]}
    other = next(name for name in read.tensors if name not in tensors and read.tensors[name].type_name == "Q6_K")
    from gguf_ext.blocks import codes_of

    kept = GGUFFile(place / "merged.gguf")
    codes = {name: torch.from_numpy(codes_of(kept.raw(name), kept.grid_type(name))) for name in tensors}
    codes[other] = torch.from_numpy(codes_of(read.raw(other), read.grid_type(other))).flip(0)
    merge_file(read, tmp_path / "odd.gguf", codes, note)
    (found,) = prove_merge(place / "base.gguf", tmp_path / "odd.gguf", place / "adapter").differences
    assert (found.name, found.what) == (other, "is not of this adapter, and differs")


def test_another_adapter_or_another_base_is_refused(place, tmp_path):
    shutil.copytree(place / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 17}))
    with pytest.raises(AdapterError, match=r"was merged with .*adapter, another adapter than"):
        prove_merge(place / "base.gguf", place / "merged.gguf", tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"has 0 merges more than .*merged\.gguf"):
        prove_merge(place / "merged.gguf", place / "merged.gguf", place / "adapter")


def test_the_command(place, tmp_path, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["verify", *map(str, arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    code, out, _ = run(place / "base.gguf", place / "merged.gguf", "--adapter", place / "adapter")
    assert code == 0
    assert "ggml dequantizes the bits of the last training step\nequal but for codes\n" in out
    code, out, _ = run(place / "base.gguf", place / "merged.gguf", "--adapter", place / "adapter", "--json")
    assert (code, json.loads(out)["proof"]["ok"]) == (0, True)
    code, _, err = run(place / "float" / "model", place / "merged.gguf", "--adapter", place / "adapter")
    assert code != 0
    assert "is for a MODEL that is a GGUF file" in err
