"""Extracting sub-adapters: logits of the super-adapter at that rank, in stock PEFT where the adapter is dense."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers_peft import TARGETS, fill_adapter
from peft import PeftModel, get_peft_model

from peft_ext import SQFTConfig
from peft_ext.tuner import SQFTTuner
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.tune.extract import extract_adapter

MIXED = {r".*layers\.0\..*": 4, r".*layers\.1\..*": 6}


def super_adapter(base, folder, **changes):
    settings = {"r": 8, "lora_alpha": 16, "rank_choices": [8, 6, 4], "target_modules": TARGETS, **changes}
    model = fill_adapter(get_peft_model(base, SQFTConfig(task_type="CAUSAL_LM", **settings))).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("rank", ["max", "heuristic", "min", 6, MIXED])
def test_an_extracted_sub_adapter_equals_the_super_adapter_at_its_rank(
    sparse_llama, tokens, tmp_path, rank, sparse, rslora
) -> None:
    model = super_adapter(sparse_llama(), tmp_path / "super", sparse=sparse, use_rslora=rslora)
    ranks = model.set_active_rank(rank)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    report = extract_adapter(tmp_path / "super", tmp_path / "sub", rank)
    assert report["ranks"] == ranks
    kind = json.loads((tmp_path / "sub" / "adapter_config.json").read_text())["peft_type"]
    assert kind == ("SQFT" if sparse else "LORA")
    loaded = PeftModel.from_pretrained(sparse_llama(), tmp_path / "sub").eval()
    with torch.no_grad():
        found = loaded(input_ids=tokens).logits
    # float32 sums in another order where stock LoRA computes two thin GEMMs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_dense_sub_adapter_loads_without_us(sparse_llama, tokens, tmp_path) -> None:
    base = sparse_llama()
    base.save_pretrained(tmp_path / "base")
    model = super_adapter(type(base).from_pretrained(tmp_path / "base"), tmp_path / "super", sparse=False)
    model.set_active_rank("min")
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    extract_adapter(tmp_path / "super", tmp_path / "sub", "min")
    torch.save(tokens, tmp_path / "tokens.pt")
    code = f"""
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained({str(tmp_path / "sub")!r}).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load({str(tmp_path / "tokens.pt")!r})).logits, {str(tmp_path / "logits.pt")!r})
assert not any(name.startswith(("peft_ext", "sqft_plugins")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_adapter_or_no_rank_of_it_is_refused(sparse_llama, tmp_path) -> None:
    super_adapter(sparse_llama(), tmp_path / "super")
    with pytest.raises(SQFTError, match=r"rank=7 is outside the search space: use one of \[8, 6, 4\]"):
        extract_adapter(tmp_path / "super", tmp_path / "sub", 7)
    assert not (tmp_path / "sub").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json: give a folder"):
        extract_adapter(tmp_path / "empty", tmp_path / "sub")


def test_damaged_weights_are_refused(sparse_llama, tmp_path) -> None:
    super_adapter(sparse_llama(), tmp_path / "super")
    file = tmp_path / "super" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is damaged or cut off .*: copy the adapter"):
        SQFTTuner().load(sparse_llama(), tmp_path / "super")


def test_an_adapter_of_another_shape_is_refused(sparse_llama, tmp_path) -> None:
    super_adapter(sparse_llama(hidden_size=32), tmp_path / "super", sparse=False)
    with pytest.raises(CheckpointError, match=r"does not fit this base .*: load it on its own base"):
        SQFTTuner().load(sparse_llama(), tmp_path / "super")
