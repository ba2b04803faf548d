"""Models whose head is the embedding, and whose adapter changes one of the two."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import peft_ext  # noqa: F401 (registers SQFT with PEFT)
from gguf_ext import LlamaSession, export_gguf, export_lora, export_model, verify_gguf
from gguf_ext.errors import AdapterError, ModelInMemoryError, UnmappedTensorError
from peft_ext import SQFTConfig
from sqft_plugins.tune.merge import merge_folder

TOKENS = torch.randint(4, 300, (60,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def tied(make, byte_level, tmp_path_factory):
    return make["llama"](byte_level, tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)


def _transformers(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def _llama_cpp(file):
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False) as session:
        return torch.cat([chunk.clone() for chunk in session.logits(TOKENS)])


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_head_of_its_own_is_exported_whatever_the_configuration_says(tied, tmp_path):
    """transformers loads both tensors of such a checkpoint and ties nothing."""
    folder = shutil.copytree(tied, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    for head, own in ((tensors["model.embed_tokens.weight"].clone(), False), (None, True)):
        head = torch.randn_like(tensors["model.embed_tokens.weight"]) if head is None else head
        save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
        report = export_gguf(folder, tmp_path / "m.gguf", float_type="f32", overwrite=True)
        torch.testing.assert_close(_llama_cpp(report.path), _transformers(_load(folder)), rtol=0, atol=2e-3)
        assert verify_gguf(folder, report.path).exact
        assert verify_gguf(tied, report.path).ok is not own
    others = {name: tensor for name, tensor in tensors.items() if "embed" not in name}
    save_file({**others, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnmappedTensorError, match=r"has no tensor for token_embd\.weight"):
        export_gguf(folder, tmp_path / "m.gguf", overwrite=True)


@pytest.mark.parametrize(("kind", "target"), [("lora", "lm_head"), ("lora", "embed_tokens"), ("sqft", "lm_head")])
def test_an_adapter_of_one_of_the_two_is_merged_into_that_one(target, kind, tied, tmp_path):
    """No LoRA file can hold it; the merge that the refusal names is what PEFT computes unmerged, and so is its file."""
    settings = {"sparse": False} if kind == "sqft" else {}
    config = (SQFTConfig if kind == "sqft" else LoraConfig)(r=4, lora_alpha=8, target_modules=[target], **settings)
    tuned = get_peft_model(_load(tied), config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    tuned.save_pretrained(tmp_path / "adapter")
    wanted = _transformers(tuned.eval())
    with pytest.raises(ModelInMemoryError, match="model holds an adapter"):
        export_model(tuned, None, tmp_path / "m.gguf", template_gguf=tmp_path / "none.gguf")
    with pytest.raises((UnmappedTensorError, AdapterError), match="merge it with `sqft merge"):
        export_lora(tmp_path / "adapter", tmp_path / "lora.gguf", base=tied)
    merge_folder(tied, tmp_path / "adapter", tmp_path / "merged")
    merged = _load(tmp_path / "merged")
    torch.testing.assert_close(_transformers(merged), wanted, rtol=0, atol=1e-3)
    report = export_gguf(tmp_path / "merged", tmp_path / "m.gguf", float_type="f32")
    torch.testing.assert_close(_llama_cpp(report.path), wanted, rtol=0, atol=2e-3)
    assert not verify_gguf(tied, report.path).ok
    again = PeftModel.from_pretrained(_load(tied), tmp_path / "adapter")
    torch.testing.assert_close(_transformers(again), wanted, rtol=0, atol=1e-3)


def test_a_merge_leaves_what_is_not_adapted_tied(tied, tmp_path):
    tuned = get_peft_model(_load(tied), LoraConfig(r=4, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    merge_folder(tied, tmp_path / "adapter", tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
