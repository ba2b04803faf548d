"""SQFTConfig under transformers' Trainer: a run that stops and resumes equals one that does not."""

from __future__ import annotations

import torch
from helpers_peft import TARGETS
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers

STEPS = 8


class Ranks(TrainerCallback):
    """Remembers the rank of one layer at every step."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        layer = dict(sqft_layers(model.base_model.model, "default"))["model.layers.0.self_attn.q_proj"]
        self.seen.append(layer.elastic["default"].sampled)


def run(base, folder, steps: int, resume: bool = False):
    torch.manual_seed(0)
    settings = SQFTConfig(r=8, lora_alpha=16, rank_choices=[8, 6, 4], target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    rows = torch.randint(4, 600, (4 * STEPS, 10), generator=torch.Generator().manual_seed(1))
    ranks = Ranks()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        seed=3,
        lr_scheduler_type="constant", save_steps=STEPS // 2, save_strategy="steps", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[ranks])
    trainer.train(resume_from_checkpoint=resume)
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}, ranks.seen


def test_a_resumed_run_equals_an_undisturbed_one(sparse_llama, tmp_path) -> None:
    whole, ranks = run(sparse_llama(), tmp_path / "whole", STEPS)
    _, first = run(sparse_llama(), tmp_path / "parts", STEPS // 2)
    resumed, second = run(sparse_llama(), tmp_path / "parts", STEPS, resume=True)
    assert first + second == ranks
    assert len(set(ranks)) > 1
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
