"""Training an adapter with transformers' Trainer."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from sqft_plugins.cards.adapter import write_training_card
from sqft_plugins.checkpoint import ModelFolder, load_model, write_folder
from sqft_plugins.checkpoint.files import check_output_folder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype
from sqft_plugins.identity import content_hash
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Tuner
from sqft_plugins.progress import quiet_libraries, say
from sqft_plugins.tune.adapters import CHAT_TEMPLATE, check_targets
from sqft_plugins.tune.arguments import (
    check_tensorboard,
    examples_at_once,
    is_main_process,
    process_count,
    tensorboard_callbacks,
    trainer_arguments,
)
from sqft_plugins.tune.chat import Chat
from sqft_plugins.tune.data import Collator, Example, Examples
from sqft_plugins.tune.evaluation import Best, HeldOut, evaluations
from sqft_plugins.tune.loss_plot import plot_losses
from sqft_plugins.tune.packing import PackingCollator, check_packing
from sqft_plugins.tune.prepare import Prepared, open_tokenizer, prepare, texts_of_a_batch
from sqft_plugins.tune.record import HISTORY, RankRecorder
from sqft_plugins.tune.resume import Checkpoints, alone, checkpoint_folder, last_checkpoint, step_of
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings
from sqft_plugins.tune.trainer import AnswerTrainer, Watch, stop_at_broken_gradients


def training_dtype(base: ModelFolder, exact: bool) -> torch.dtype:
    """What the base is trained in: the dtype that is fast here, or, where `exact`, float32 if that one could not hold
    the float weights of `base` as they are."""
    fast = fast_dtype()
    return fast if not exact or _holds(base, fast) else torch.float32


def choose_dtype(base: ModelFolder, exact: bool, asked: str) -> tuple[torch.dtype, str]:
    """The dtype of the base, and why. exact: its float weights must not be rounded. Raises SQFTError where `asked`
    would round them."""
    if asked != "auto":
        dtype = getattr(torch, asked)
        if exact and not _holds(base, dtype):
            raise SQFTError(
                f"dtype={asked} would round the float weights of which --quantization-aware makes codes, and tune "
                "another model than the one merged into: use auto or float32"
            )
        return dtype, "as asked"
    dtype = training_dtype(base, exact)
    if dtype != fast_dtype():
        return dtype, "bfloat16 would round the float weights of which the codes are made"
    return dtype, "fast on this machine" if dtype == torch.bfloat16 else "bfloat16 would not be faster on this machine"


def _holds(base: ModelFolder, dtype: torch.dtype) -> bool:
    stored = {base.spec(name).dtype for name in base.files}
    return all(torch.promote_types(kind, dtype) == dtype for kind in stored if kind.is_floating_point)


def train_adapter(
    model_path: str | Path,
    out: str | Path,
    examples: Sequence[Example | Chat],
    adapter: AdapterSettings,
    training: TrainSettings,
    *,
    tuner: str = "sqft",
    text: Sequence[Example] = (),
    eval_examples: Sequence[Example | Chat] = (),
    overwrite: bool = False,
    anew: bool = False,
) -> dict[str, Any]:
    """Tunes an adapter over the model folder and writes it to `out`, as PEFT saves adapters.

    examples: what to learn. text: general text mixed into each batch (`training.text_fraction`). eval_examples: held
    out, their loss is measured every `training.eval_every` steps. The adapter is float32, the base in `training.dtype`.
    With `training.checkpoint_every` a run that was killed goes on from its last checkpoint when called again; one of
    another run raises MismatchError, or, with `anew`, is removed. Several processes (torchrun, accelerate launch) share
    each batch; the first one writes.

    Returns losses, evaluations, seconds and sizes. Raises SQFTError before the model is loaded for whatever can be
    known by then, and where the loss or a gradient is not finite.
    """
    method = get_manager().get("sqft_tuners", tuner, "--tuner")
    base = ModelFolder(model_path)
    method.check(Path(model_path), adapter)
    check_output_folder(out, overwrite)
    missing = check_targets(adapter.target_modules, model_path)
    check_tensorboard(training.tensorboard)
    # codes are made from the float weights, so rounding those would train another model than the one merged into
    dtype, reason = choose_dtype(base, adapter.quantization_aware and base.grid is None, training.dtype)
    tokenizer, context = open_tokenizer(model_path, training)
    data = prepare(examples, text, eval_examples, tokenizer, training, process_count(), context)
    training = data.training
    what = {
        "base": str(model_path),
        "tuner": tuner,
        "adapter": adapter.model_dump(),
        "training": training.model_dump(),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": process_count(),
    }
    folder = checkpoint_folder(out) if training.checkpoint_every else None
    run = _identity(what, data) if folder else {}
    with alone(out) if is_main_process() else nullcontext(), tempfile.TemporaryDirectory() as temporary:
        last = last_checkpoint(folder, run, anew) if folder else None
        if is_main_process():
            _tell(data, f"{what['dtype']}, {reason}", missing, last)
            if adapter.quantization_aware and base.grid is not None:
                say(f"{model_path} has codes alone, which move slowly: learn more over its float model, with --grid")
        scratch = Path(temporary)
        model = load_model(model_path, dtype=dtype)
        _check_model(model, training)
        set_seed(training.seed)
        tuned = method.attach(model, adapter)
        stop_at_broken_gradients(tuned)
        best = Best(tuned) if training.keep == "best" else None
        checkpoints = Checkpoints(folder or scratch, scratch, run, best)
        if last is not None:
            checkpoints.restore(last)
        trainer = _trainer(method, tuned, adapter, data, tokenizer.pad_token_id or 0, dtype, checkpoints, last)
        with quiet_libraries():
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        if best is not None:
            best.restore()
        log = trainer.state.log_history
        report = {
            "out": str(out),
            **what,
            "dtype_reason": reason,
            "base_is_int4": base.grid is not None,
            "trained_parameters": sum(p.numel() for p in tuned.parameters() if p.requires_grad),
            "examples": data.examples,
            "dropped": data.dropped,
            "held_out": len(data.held_out),
            "tokens": sum(len(row["input_ids"]) for row in data.rows),
            "seconds": checkpoints.seconds,
            "resumed_from_step": step_of(last) if last is not None else None,
            "kept_step": best.step if best is not None and best.step is not None else training.steps,
            "losses": [row["loss"] for row in log if "loss" in row],
            "evaluations": evaluations(log),
        }
        if is_main_process():
            with write_folder(out, overwrite) as target:
                tuned.save_pretrained(target)
                _write_beside(target, report, scratch / HISTORY, tokenizer if training.chat_template else None)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return report


def _identity(what: Mapping[str, Any], data: Prepared) -> dict[str, Any]:
    """What must be equal in a run that goes on from a checkpoint: all that its result depends on."""
    without = {"epochs", "dtype", "checkpoint_every", "chat_template", "tensorboard"}  # said otherwise, or no matter
    training = {name: value for name, value in what["training"].items() if name not in without}
    adapter = dict(what["adapter"])
    if adapter["grid"] is not None:
        adapter["grid"] = content_hash(Path(local_folder(adapter["grid"])))
    return {**what, "base": content_hash(Path(what["base"])), "adapter": adapter, "training": training, **data.hashes}


def _trainer(
    method: Tuner,
    tuned: Any,
    adapter: AdapterSettings,
    data: Prepared,
    pad: int,
    dtype: torch.dtype,
    checkpoints: Checkpoints,
    last: Path | None,
) -> AnswerTrainer:
    training, held_out = data.training, None
    if data.held_out:
        set_rank = partial(method.set_rank, tuned) if adapter.rank_choices else None
        held_out = HeldOut(data.held_out, examples_at_once(training), pad, set_rank)
    trainer = AnswerTrainer(
        model=tuned,
        args=trainer_arguments(
            training, checkpoints.folder, dtype, evaluated=held_out is not None, begun=last is not None
        ),
        train_dataset=Examples(data.rows),
        eval_dataset=Examples(data.held_out) if data.held_out else None,
        data_collator=PackingCollator(pad) if training.packing else Collator(pad),
        callbacks=[
            Watch(f"tuning {method.name}"),
            RankRecorder(method, tuned, checkpoints.scratch),
            checkpoints,
            *tensorboard_callbacks(training.tensorboard, step_of(last) if last is not None else None),
        ],
        held_out=held_out,
        best=checkpoints.best,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
    return trainer


def _check_model(model: Any, training: TrainSettings) -> None:
    if training.packing:
        check_packing(model)
    if training.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise SQFTError(f"gradient_checkpointing=True: {type(model).__name__} does not offer it, leave it out")


def _tell(data: Prepared, dtype: str, missing: Sequence[str], last: Path | None) -> None:
    training = data.training
    say(f"{data.examples} examples in {training.steps} steps of {training.batch_size}, base in {dtype}")
    if data.dropped:
        say(f"{data.dropped} examples left out: longer than max_length={training.max_length} tokens, or the context")
    if missing:
        say(f"no layer is called {', '.join(missing)}: the other target modules are adapted")
    if training.text_fraction and not texts_of_a_batch(training):
        batch = f"a batch of {training.batch_size}"
        say(f"text_fraction={training.text_fraction:g} of {batch} is less than an example: no text is mixed in")
    if last is not None:
        say(f"going on from step {step_of(last)} of {training.steps}, saved in {last.parent}")


def _write_beside(folder: Path, report: dict[str, Any], history: Path, tokenizer: Any) -> None:
    """What the adapter folder has beside the adapter. tokenizer: where its template was not the base's own."""
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    write_training_card(folder, report)
    plot_losses(report["losses"], folder / "loss.png", report["evaluations"])
    if history.is_file():
        shutil.copyfile(history, folder / HISTORY)
    if tokenizer is not None:
        (folder / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
