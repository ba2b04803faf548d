"""What `save_pretrained` writes of a model that had an adapter: plain linears, however the adapter is left."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers_peft import fill_adapter
from peft import get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import gguf_ext
from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.quantize import quantize_folder

TOKENS = torch.arange(4, 20)[None]


def ours(folder: Path):
    return load_model(folder, dtype=torch.float32)


def stock(folder: Path):
    options = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=options)


def tuned(base, **changes):
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **changes}
    return fill_adapter(get_peft_model(base, SQFTConfig(**settings))).eval()


EXITS = {
    "merge_and_unload": lambda m: m.merge_and_unload(),
    "safe_merge": lambda m: m.merge_and_unload(safe_merge=True),
    "adapter_names": lambda m: m.merge_and_unload(adapter_names=["default"]),
    "merge, then unload": lambda m: (m.merge_adapter(), m.merge_and_unload())[1],
    "unload": lambda m: m.unload(),
    "tuner": lambda m: m.base_model.merge_and_unload(),
}


def check_plain(folder: Path, tokenizer: Path, tmp_path: Path, expected: torch.Tensor) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {name.rpartition(".")[2] for name in file.keys()} == {"weight"}  # noqa: SIM118
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert ModelFolder(folder).grid is None
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(TOKENS).logits, expected)
    for file in tokenizer.glob("token*"):
        shutil.copy(file, folder)
    gguf_ext.export_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("load", [ours, stock])
@pytest.mark.parametrize("leave", EXITS)
def test_a_quantization_aware_adapter_leaves_plain_linears(int4, tmp_path, load, leave) -> None:
    model = EXITS[leave](tuned(load(int4), quantization_aware=True))
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "out")
    check_plain(tmp_path / "out", int4, tmp_path, expected)


@pytest.mark.parametrize("load", [ours, stock])
def test_a_dense_adapter_over_int4_leaves_plain_linears_when_unloaded(int4, tmp_path, load) -> None:
    model = tuned(load(int4), sparse=False).unload()
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "out")
    check_plain(tmp_path / "out", int4, tmp_path, expected)


@pytest.mark.parametrize("leave", EXITS)
def test_a_masked_adapter_leaves_a_folder_that_can_be_quantized(pruned, tmp_path, leave) -> None:
    model = EXITS[leave](tuned(ours(pruned)))
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "out")
    check_plain(tmp_path / "out", pruned, tmp_path, expected)
    quantize_folder(tmp_path / "out", tmp_path / "int4")
    assert ModelFolder(tmp_path / "int4").stamp.sparsity == pytest.approx(0.5, abs=0.02)


def test_a_base_alone_is_saved_as_plain_linears(int4, tmp_path) -> None:
    model = ours(int4)
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "out")
    check_plain(tmp_path / "out", int4, tmp_path, expected)


def test_the_merged_model_in_memory_still_knows_its_grid(int4, tmp_path) -> None:
    """GGUF from memory is exact Q4_0, from the scales that are kept beside the weights."""
    from sqft_plugins.checkpoint import load_tokenizer

    merged = tuned(ours(int4), quantization_aware=True).merge_and_unload()
    report = gguf_ext.export_model(merged, load_tokenizer(int4), tmp_path / "model.gguf")
    assert "Q4_0" in str(report)


def test_a_dense_merge_takes_the_stamp_away(pruned) -> None:
    assert hasattr(ours(pruned).config, "sqft")
    assert hasattr(tuned(ours(pruned)).merge_and_unload().config, "sqft")
    assert hasattr(tuned(ours(pruned), sparse=False).unload().config, "sqft")
    assert not hasattr(tuned(ours(pruned), sparse=False).merge_and_unload().config, "sqft")
