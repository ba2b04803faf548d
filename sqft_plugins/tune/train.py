"""Training an adapter with transformers' Trainer."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer, write_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype
from sqft_plugins.plugins import get_manager
from sqft_plugins.progress import quiet_libraries, track
from sqft_plugins.tune.card import plot_losses, write_card
from sqft_plugins.tune.data import Collator, Example, Examples, mix, tokenize
from sqft_plugins.tune.loss import answer_logits, answer_loss
from sqft_plugins.tune.record import RankRecorder
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings


class AnswerTrainer(Trainer):
    """A Trainer that computes logits at the answer's tokens only and keeps the order of its data."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(
            cast(Sized, self.train_dataset)
        )  # `mix` has shuffled, the same for every process count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logits, targets = answer_logits(model, head, inputs, labels)
        loss = answer_loss(logits, targets, num_items_in_batch)
        if not bool(torch.isfinite(loss)):  # before the backward pass, where a gradient would be blamed
            step = self.state.global_step + 1
            raise SQFTError(f"loss={float(loss)} at step {step}: lower --learning-rate, or look for broken data")
        return (loss, logits) if return_outputs else loss


class Watch(TrainerCallback):
    """Shows the progress and keeps the losses."""

    def __init__(self, what: str, steps: int):
        self.losses: list[float] = []
        self.bar = track(range(steps), what)
        next(self.bar)

    def on_step_end(self, args, state, control, **kwargs):
        next(self.bar, None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None:
            self.losses.append(float(loss))


def stop_at_broken_gradients(model: nn.Module) -> None:
    """From now on a gradient that is not finite ends the backward pass with SQFTError, naming its parameter: the first
    one that appears, so the layer where it began."""

    def check(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise SQFTError(
                f"the gradient of {name} is not finite: lower --learning-rate or --alpha, or look for broken data"
            )

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(check, name))


def training_dtype(base: ModelFolder, exact: bool) -> torch.dtype:
    """What the base is trained in: the dtype that is fast here, or, where `exact`, float32 if that one could not hold
    the float weights of `base` as they are."""
    fast = fast_dtype()
    stored = {base.spec(name).dtype for name in base.files}
    held = all(torch.promote_types(dtype, fast) == fast for dtype in stored if dtype.is_floating_point)
    return fast if held or not exact else torch.float32


def train_adapter(
    model_path: str | Path,
    out: str | Path,
    examples: Sequence[Example],
    adapter: AdapterSettings,
    training: TrainSettings,
    *,
    tuner: str = "sqft",
    text: Sequence[Example] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tunes an adapter over the model folder and writes it to `out`, as PEFT saves adapters.

    examples: what to learn. text: general text mixed into each batch (`training.text_fraction`). The base runs in
    `training_dtype`, the adapter is float32. Returns losses, seconds and sizes. Raises SQFTError before the model is
    loaded for whatever can be known by then, and where the loss or a gradient is not finite.
    """
    method = get_manager().get("sqft_tuners", tuner, "--tuner")
    base = ModelFolder(model_path)
    method.check(Path(model_path), adapter)
    # codes are made from the float weights, so rounding those would train another model than the one merged into
    dtype = training_dtype(base, exact=adapter.quantization_aware and base.grid is None)
    tokenizer = load_tokenizer(model_path)
    task_rows = tokenize(examples, tokenizer, training.max_length)
    text_rows = tokenize(text, tokenizer, training.max_length)
    rows = mix(task_rows, text_rows, training.text_fraction, training.batch_size, training.steps, training.seed)
    with write_folder(out, overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        model = load_model(model_path, dtype=dtype)
        set_seed(training.seed)
        tuned = method.attach(model, adapter)
        stop_at_broken_gradients(tuned)
        watch = Watch(f"tuning {tuner}", training.steps)
        trainer = AnswerTrainer(
            model=tuned,
            args=_arguments(training, scratch, dtype),
            train_dataset=Examples(rows),
            data_collator=Collator(tokenizer.pad_token_id or 0),
            callbacks=[watch, RankRecorder(method, tuned, folder)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        with quiet_libraries():
            trainer.train()
        tuned.save_pretrained(folder)
        trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        report = {
            "out": str(out),
            "base": str(model_path),
            "base_is_int4": base.grid is not None,
            "tuner": tuner,
            "adapter": adapter.model_dump(),
            "training": training.model_dump(),
            "trained_parameters": trained,
            "dtype": str(dtype).removeprefix("torch."),
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "seconds": time.monotonic() - start,
            "losses": watch.losses,
        }
        (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
        write_card(folder, report)
        plot_losses(watch.losses, folder / "loss.png")
    return report


def _arguments(training: TrainSettings, scratch: str, dtype: torch.dtype) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.steps * training.warmup_fraction),
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        seed=training.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # would show a NaN as the mean of the losses before it
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
