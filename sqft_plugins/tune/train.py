"""`sqft train` as a function: an adapter, trained with transformers' Trainer."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PrinterCallback, set_seed

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import CHAT_TEMPLATE
from sqft_plugins.cards.adapter import write_training_card
from sqft_plugins.checkpoint import ModelFile, ModelFolder, open_model, write_folder
from sqft_plugins.checkpoint.files import check_output_folder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.leftovers import DONE, discard
from sqft_plugins.compress.coverage import Coverage
from sqft_plugins.errors import SQFTError
from sqft_plugins.identity import content_hash
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Tuner
from sqft_plugins.progress import quiet_libraries, say
from sqft_plugins.tune.arguments import (
    examples_at_once,
    is_main_process,
    process_count,
    tensorboard_callbacks,
    trainer_arguments,
)
from sqft_plugins.tune.base_weights import load_base, stays_packed
from sqft_plugins.tune.chat import Chat
from sqft_plugins.tune.data import Collator
from sqft_plugins.tune.dtypes import choose_dtype
from sqft_plugins.tune.evaluation import Best, HeldOut, evaluations
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.init_adapter import begun_from
from sqft_plugins.tune.loss_plot import plot_losses
from sqft_plugins.tune.over_file import open_base
from sqft_plugins.tune.packing import PackingCollator, check_packing
from sqft_plugins.tune.prepare import Prepared, open_tokenizer, prepare, texts_of_a_batch
from sqft_plugins.tune.record import HISTORY, RankRecorder
from sqft_plugins.tune.report import TrainReport
from sqft_plugins.tune.resume import Checkpoints, alone, checkpoint_folder, last_checkpoint, step_of
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings
from sqft_plugins.tune.settling import settling_text
from sqft_plugins.tune.targets import check_coverage, check_targets
from sqft_plugins.tune.trainer import AnswerTrainer, Watch, stop_at_broken_gradients


@dataclass(frozen=True)
class Run:
    """What a run will do, checked.

    method: the tuner.
    data: the rows; `data.training` are the settings with the steps that the epochs come to.
    dtype, reason: of the base, and why.
    missing: names of target modules that no layer has.
    packed: whether the base's weights stay packed.
    coverage: what part of the model's weights are adapted.
    """

    base: ModelFolder
    method: Tuner
    adapter: AdapterSettings
    data: Prepared
    tokenizer: Any
    dtype: torch.dtype
    reason: str
    missing: Sequence[str]
    packed: bool
    coverage: Coverage

    @property
    def training(self) -> TrainSettings:
        return self.data.training

    def identity(self, model_path: str | Path) -> dict[str, Any]:
        """What must be equal in a run that goes on from a checkpoint: all that its result depends on."""
        # epochs, dtype and chat_template are in steps, dtype and the rows; the other two do not matter
        without = {"epochs", "dtype", "checkpoint_every", "chat_template", "tensorboard", "base_weights"}
        adapter = self.adapter.model_dump()
        if adapter["grid"] is not None:
            adapter["grid"] = content_hash(Path(local_folder(adapter["grid"])))
        if adapter["init_adapter"] is not None:
            adapter["init_adapter"] = AdapterFolder(adapter["init_adapter"]).content_hash

        return {
            "base": content_hash(Path(model_path)),
            "tuner": self.method.name,
            "adapter": adapter,
            "training": self.training.model_dump(exclude=without),
            "dtype": _name(self.dtype),
            "processes": process_count(),
            **self.data.hashes,
        }


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
    float_base: str | Path | None = None,
) -> dict[str, Any]:
    """Tunes an adapter over the model folder and writes it to `out`, as PEFT saves adapters → a `TrainReport` as a
    dictionary. The adapter is float32, the base in `training.dtype`.

    examples: what to learn.
    text: general text mixed into each batch (`training.text_fraction`).
    eval_examples: held out; their loss is measured every `training.eval_every` steps.
    anew: remove the checkpoints of another run, which raise MismatchError otherwise.
    float_base: where `model_path` is a file, its float model, over which more is learned.

    With `training.checkpoint_every` a run that was killed goes on from its last checkpoint when called again. Several
    processes (torchrun, accelerate launch) share each batch; the first one writes.

    Raises SQFTError before the model is loaded for whatever can be known by then, and where the loss or a gradient is
    not finite.
    """
    # everything that can be refused
    method: Tuner = get_manager().get("sqft_tuners", tuner, "--tuner")
    adapter = begun_from(adapter, open_model(model_path).path, training)
    base, adapter = open_base(model_path, adapter, method.name, float_base)
    model_path = base.path
    method.check(Path(model_path), adapter)
    check_output_folder(out, overwrite)
    missing = check_targets(adapter.target_modules, model_path)
    named = "target_modules" in adapter.model_fields_set
    coverage = check_coverage(adapter.target_modules, model_path, named)
    dtype, reason = choose_dtype(base, adapter.quantization_aware, training.dtype)
    tokenizer, context = open_tokenizer(model_path, training)
    data = prepare(examples, text, eval_examples, tokenizer, training, process_count(), context)
    packed = stays_packed(base, adapter, training)
    run = Run(base, method, adapter, data, tokenizer, dtype, reason, missing, packed, coverage)

    folder = checkpoint_folder(out) if training.checkpoint_every else None
    identity = run.identity(model_path) if folder else {}
    with alone(out) if is_main_process() else nullcontext(), tempfile.TemporaryDirectory() as temporary:
        last = last_checkpoint(folder, identity, anew) if folder else None
        if is_main_process():
            _say_what_is_done(run, last)

        # work
        model = load_base(base, adapter, dtype, packed)
        _check_model(model, run.training)
        set_seed(training.seed)
        tuned: Any = method.attach(model, adapter)
        stop_at_broken_gradients(tuned)
        best = Best(tuned) if training.keep == "best" else None
        checkpoints = Checkpoints(folder or Path(temporary), Path(temporary), identity, best)
        if last is not None:
            checkpoints.restore(last)
        trainer = _trainer(run, tuned, checkpoints)
        if training.steps:
            with quiet_libraries():
                trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        if best is not None:
            best.restore()

        unsettled: SQFTError | None = None
        if is_main_process() and hasattr(method, "settle"):
            try:
                method.settle(tuned, settling_text(data.rows, context))
            except SQFTError as error:  # what was learned is not to be lost
                unsettled = error

        # report
        report = asdict(_report(run, model_path, out, trainer, checkpoints))
        if is_main_process():
            with write_folder(out, overwrite) as target:
                with _no_search(base):
                    tuned.save_pretrained(target)
                own_template = tokenizer if training.chat_template else None
                _write_beside(target, report, Path(temporary) / HISTORY, own_template)
                if folder is not None:
                    (folder / DONE).touch()
            if folder is not None:
                discard(folder, Path(out).resolve())
    if unsettled is not None:
        raise SQFTError(f"{out} is written as it was trained, but has no codes: {unsettled}") from unsettled
    return report


@contextmanager
def _no_search(base: ModelFolder) -> Iterator[None]:
    """Without PEFT's notice that a file has no config.json beside it."""
    with warnings.catch_warnings():
        if isinstance(base, ModelFile):
            warnings.filterwarnings("ignore", message="Could not find a config file")
        yield


def _trainer(run: Run, tuned: Any, checkpoints: Checkpoints) -> AnswerTrainer:
    training, data, pad = run.training, run.data, run.tokenizer.pad_token_id or 0
    held_out = None
    if data.held_out:
        set_rank = partial(run.method.set_rank, tuned) if run.adapter.rank_choices else None
        held_out = HeldOut(data.held_out, examples_at_once(training), pad, set_rank)

    begun = checkpoints.resumed_from
    trainer = AnswerTrainer(
        model=tuned,
        args=trainer_arguments(
            training, checkpoints.folder, run.dtype, evaluated=held_out is not None, begun=begun is not None
        ),
        train_dataset=data.rows,
        eval_dataset=data.held_out or None,
        data_collator=PackingCollator(pad) if training.packing else Collator(pad),
        callbacks=[
            Watch(f"tuning {run.method.name}"),
            RankRecorder(run.method, tuned, checkpoints.scratch),
            checkpoints,
            *tensorboard_callbacks(training.tensorboard, begun),
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


def _say_what_is_done(run: Run, last: Path | None) -> None:
    training, data = run.training, run.data
    say(
        f"{data.examples} examples in {training.steps} steps of {training.batch_size}, base in {_name(run.dtype)}, "
        f"{run.reason}{', packed in memory' if run.packed else ''}"
    )
    if data.dropped:
        say(f"{data.dropped} examples left out: longer than max_length={training.max_length} tokens, or the context")
    if run.missing:
        say(f"no layer is called {', '.join(run.missing)}: the other target modules are adapted")
    if training.text_fraction and not texts_of_a_batch(training):
        batch = f"a batch of {training.batch_size}"
        say(f"text_fraction={training.text_fraction:g} of {batch} is less than an example: no text is mixed in")

    if last is not None:
        say(f"going on from step {step_of(last)} of {training.steps}, saved in {last.parent}")
    rounded = run.adapter.quantization_aware and run.adapter.rounding != "compensated"
    if rounded and run.base.grid is not None:
        option = "--base" if isinstance(run.base, ModelFile) else "--grid"
        say(f"{run.base.path} has codes alone, which move slowly: learn more over its float model, with {option}")


def _report(
    run: Run, model_path: str | Path, out: str | Path, trainer: AnswerTrainer, checkpoints: Checkpoints
) -> TrainReport:
    best, log, tuned = checkpoints.best, trainer.state.log_history, cast(nn.Module, trainer.model)
    return TrainReport(
        out=str(out),
        base=str(model_path),
        tuner=run.method.name,
        adapter=run.adapter.model_dump(),
        training=run.training.model_dump(),
        dtype=_name(run.dtype),
        processes=process_count(),
        dtype_reason=run.reason,
        base_is_int4=run.base.grid is not None,
        trained_parameters=sum(p.numel() for p in tuned.parameters() if p.requires_grad),
        examples=run.data.examples,
        dropped=run.data.dropped,
        held_out=len(run.data.held_out),
        tokens=sum(len(row["input_ids"]) for row in run.data.rows) if run.training.steps else 0,
        seconds=checkpoints.seconds,
        resumed_from_step=checkpoints.resumed_from,
        kept_step=best.step if best is not None and best.step is not None else run.training.steps,
        losses=[row["loss"] for row in log if "loss" in row],
        evaluations=evaluations(log),
        coverage=run.coverage.as_dict(),
    )


def _write_beside(folder: Path, report: dict[str, Any], history: Path, tokenizer: Any) -> None:
    """What the adapter folder has beside the adapter. tokenizer: where its template was not the base's own."""
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    write_training_card(folder, report)
    if report["losses"]:
        plot_losses(report["losses"], folder / "loss.png", report["evaluations"])
    if history.is_file():
        shutil.copyfile(history, folder / HISTORY)
    if tokenizer is not None:
        (folder / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
