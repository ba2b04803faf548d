"""SQFTConfig under transformers' Trainer and TRL's SFTTrainer."""

from __future__ import annotations

import shutil
from pydoc_data.topics import topics

import pytest
import torch
from helpers_peft import sparsify
from helpers_training import STEPS, make_config, train
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

ADAPTER = "adapter_model.safetensors"


def test_a_resumed_run_equals_an_undisturbed_one(sparse_llama, tmp_path) -> None:
    whole = train(sparse_llama(), tmp_path / "whole")
    half = f"checkpoint-{STEPS // 2}"
    shutil.copytree(tmp_path / "whole" / half, tmp_path / "parts" / half)
    resumed = train(sparse_llama(), tmp_path / "parts", resume=True)
    assert resumed.ranks == whole.ranks[STEPS // 2 :]
    assert len({rank for step in whole.ranks for rank in step}) == 3
    assert resumed.losses == whole.losses[STEPS // 2 :]
    ours, theirs = (load_file(tmp_path / name / "final" / ADAPTER) for name in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_loss_falls(sparse_llama, tmp_path, compiled) -> None:
    arguments = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
    watch = train(sparse_llama(num_hidden_layers=1), tmp_path, steps=24, arguments=arguments)
    assert sum(watch.losses[-8:]) < sum(watch.losses[:8]) - 0.5


def test_sft_trainer_attaches_trains_and_saves(tiny_llama, tiny_tokenizer, tmp_path) -> None:
    """With gradient checkpointing, which TRL turns on by itself, on the help texts of Python."""
    pytest.importorskip("trl", reason="TRL is in the extra `dev`")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    base = tmp_path / "base"
    sparsify(AutoModelForCausalLM.from_pretrained(tiny_llama)).save_pretrained(base)
    tokenizer = tiny_tokenizer("byte-level")
    tokenizer.save_pretrained(base)
    texts = [text[:300] for text in sorted(topics.values())[:32]]
    arguments = SFTConfig(
        output_dir=str(tmp_path / "adapter"), max_steps=16, per_device_train_batch_size=4, learning_rate=1e-2,
        max_length=48, logging_steps=1, save_strategy="no", use_cpu=True, bf16=False, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    assert arguments.gradient_checkpointing
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base), args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}), peft_config=make_config(),
    )  # fmt: skip
    zeros = {name: p == 0 for name, p in trainer.model.named_parameters() if "base_layer" in name}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-4:]) / 4 < losses[0] - 0.1
    trainer.save_model()
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    tokens = tokenizer(texts[:2], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = trainer.model.eval()(**tokens).logits
        assert torch.equal(model(**tokens).logits, expected)
    merged = model.merge_and_unload()
    weights = dict(merged.named_parameters())
    for name, zero in zeros.items():
        weight = weights[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        assert not weight[zero].any()
