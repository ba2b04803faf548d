"""Folders as stock transformers reads them, and tokenizers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError


@pytest.fixture
def copy(pruned, tmp_path) -> Path:
    return shutil.copytree(pruned, tmp_path / "copy")


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (-1, True), (-1, False)])
def test_stock_transformers_reads_the_same_weights(request, tmp_path, family, group_size, symmetric):
    """In the folder's own dtype each weight is the exact one rounded once. In float32 it is exact up to transformers
    5.23; 5.24 rounds it to the dtype of the scales first, which is the source's."""
    source = request.getfixturevalue(f"tiny_{family}")
    quantize_folder(source, tmp_path / "out", group_size=group_size, symmetric=symmetric)
    folder = ModelFolder(tmp_path / "out")
    own = getattr(torch, folder.config["dtype"])
    early = Version(transformers.__version__) >= Version("5.24.0.dev0")
    for dtype in {torch.float32, own}:
        model = AutoModelForCausalLM.from_pretrained(
            folder.path, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=dtype
        )
        parameters = dict(model.named_parameters())
        for module in folder.int4.modules:
            exact = folder.weight(module)
            expected = exact.to(own if early else dtype).to(dtype)
            assert torch.equal(parameters[f"{module}.weight"], expected), (module, dtype)
        for name in set(folder.files) & set(parameters):
            if name.endswith("zero_point"):  # unpacked and signed in memory
                continue
            assert torch.equal(parameters[name], folder.tensor(name).to(dtype)), name


def test_stock_transformers_generates_without_our_arguments(int4):
    tokenizer, batch = load_tokenizer(int4), torch.tensor([[2, 40, 50, 60]])
    packed = AutoModelForCausalLM.from_pretrained(int4, dtype=torch.float32)
    ours = load_model(int4, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(packed(batch).logits, ours(batch).logits, rtol=0, atol=1e-5)
    generated = ours.generate(batch, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 8
    assert isinstance(tokenizer.decode(generated[0]), str)


@pytest.mark.parametrize("file", ["tokenizer.json"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_a_missing_tokenizer_is_not_silently_an_empty_one(request, tmp_path, file, model):
    copy = shutil.copytree(request.getfixturevalue(model), tmp_path / "copy")
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: copy tokenizer\.json"):
        load_tokenizer(copy)


def test_damaged_tokenizers_are_named(copy):
    for file, text in (("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")):
        original = (copy / file).read_text()
        (copy / file).write_text(text)
        with pytest.raises(CheckpointError, match="has no tokenizer that transformers reads") as caught:
            load_tokenizer(copy)
        assert "\n" not in str(caught.value)
        (copy / file).write_text(original)
