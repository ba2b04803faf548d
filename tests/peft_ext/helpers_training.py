"""A short run of transformers' Trainer, the same in one process and in several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from helpers_peft import TARGETS
from packaging.version import Version
from peft import get_peft_model
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers

BATCH = 4
STEPS = 8
RESUMES = Version(transformers.__version__) >= Version("5.18")
"""Whether Trainer resumes in several processes on CPUs."""


class Watch(TrainerCallback):
    """Remembers the loss and the sampled ranks of every step, and what the parameters are then."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ranks: list[list[int | None]] = []
        self.parameters: set[str] = set()

    def on_step_end(self, args, state, control, model: Any = None, **kwargs: Any) -> None:
        wrapped = getattr(model, "module", model)  # DDP's
        layers = sqft_layers(wrapped.base_model.model, "default")
        self.ranks.append([layer.elastic["default"].ranks.drawn for _, layer in layers])
        self.parameters |= {type(parameter.data).__name__ for parameter in wrapped.parameters()}

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])


def make_config(**changes: Any) -> SQFTConfig:
    """An elastic SparsePEFT adapter; `rank_choices=None` for a fixed rank."""
    settings = {"r": 8, "lora_alpha": 16, "rank_choices": [8, 6, 4], "share_rank": "module"}
    return SQFTConfig(**{**settings, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **changes})


def train(base: PreTrainedModel, folder, *, processes: int = 1, steps: int = STEPS, **options: Any) -> Watch:
    """Tunes a new adapter and saves it as `folder`/final, a checkpoint after each 4 steps beside it.

    The batch is 4 rows over all processes. Options: resume, config (changes to `make_config`), arguments (further
    TrainingArguments), make_trainer.
    """
    torch.manual_seed(0)
    model = get_peft_model(base, make_config(**options.get("config", {})))
    rows = torch.randint(4, 600, (8, 10), generator=torch.Generator().manual_seed(1)).repeat(8, 1)
    watch = Watch()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH // processes, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_steps=1, save_steps=4, use_cpu=True, seed=3, report_to="none",
        disable_tqdm=True, **options.get("arguments", {}),
    )  # fmt: skip
    make_trainer: Callable = options.get("make_trainer", Trainer)
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = make_trainer(model=model, args=arguments, train_dataset=data, callbacks=[watch])
    trainer.train(resume_from_checkpoint=options.get("resume", False))
    trainer.save_model(f"{folder}/final")
    return watch
