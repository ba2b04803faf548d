"""Our settings in Trainer's words, and its callbacks."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from sqft_plugins.progress import say
from sqft_plugins.tune.settings import TrainSettings

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Trainer's names of our learning rate schedules; each begins with the warm-up."""


def process_count() -> int:
    """Processes that torchrun or accelerate started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one process, or of several the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def examples_at_once(training: TrainSettings) -> int:
    """Examples of a forward pass: the batch is that of all processes, and may be cut into parts."""
    return training.batch_size // training.gradient_accumulation // process_count()


def checkpointing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing under the name that Trainer has for it: another one from transformers 5.24 on, which
    drops the first with version 6."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}}


def trainer_arguments(
    training: TrainSettings, folder: Path, dtype: torch.dtype, *, evaluated: bool, begun: bool
) -> TrainingArguments:
    """folder: for checkpoints.
    evaluated: there are held-out examples.
    begun: the run goes on from a checkpoint.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        # what is learned
        max_steps=training.steps,
        per_device_train_batch_size=examples_at_once(training),
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.steps * training.warmup_fraction),
        lr_scheduler_type=SCHEDULES[training.schedule],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        seed=training.seed,
        # how it is computed
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        **checkpointing(training.gradient_checkpointing),
        # what is logged, evaluated and saved
        logging_steps=1,
        logging_nan_inf_filter=False,  # would show a NaN as the mean of the losses before it
        eval_strategy="steps" if evaluated else "no",
        eval_steps=training.eval_every,
        eval_on_start=evaluated and not begun,
        save_strategy="steps" if training.checkpoint_every else "no",
        save_steps=training.checkpoint_every or training.steps,
        save_total_limit=2,  # the one before, should this one be cut off
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )

    if arguments.n_gpu > 1:  # Trainer would use DataParallel, and a batch for each of them
        say(f"one of {arguments.n_gpu} GPUs is used: for all of them begin with `torchrun --nproc_per_node`")
        arguments._n_gpu = 1
    return arguments


def tensorboard_callbacks(folder: str | None, begun: int | None) -> list[TrainerCallback]:
    """The writer of TensorBoard's log into `folder`. begun: the step that the run goes on from."""
    if folder is None or not is_main_process():
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    # the steps after the checkpoint come again
    return [TensorBoardCallback(SummaryWriter(folder, purge_step=None if begun is None else begun + 1))]
