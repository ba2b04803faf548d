"""What a run trains on, known before any model is loaded: rows of tokens in training order, and those held out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import load_tokenizer
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import transformers_config
from sqft_plugins.tune.chat import Chat, read_template
from sqft_plugins.tune.data import Row, mix, split, tokenize
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.settings import TrainSettings


@dataclass(frozen=True)
class Prepared:
    """rows: `steps * batch_size`, in training order; without steps the examples once, to settle on.
    held_out: rows that are not learned.
    training: with the steps that the epochs come to, and a number for `eval_every` where there are held-out examples.
    examples: that are learned; dropped: that were too long.
    """

    rows: Sequence[Row]
    held_out: Sequence[Row]
    training: TrainSettings
    examples: int
    dropped: int

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 over the tokens and labels."""
        return {
            name: hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
            for name, rows in (("data", self.rows), ("held-out data", self.held_out))
        }


def prepare(
    examples: Sequence[Example | Chat],
    text: Sequence[Example],
    eval_examples: Sequence[Example | Chat],
    tokenizer: Any,
    training: TrainSettings,
    processes: int,
    context: int | None = None,
) -> Prepared:
    """The rows of a run.

    text: general text, mixed in; eval_examples: held out.
    processes: that share each batch.
    context: tokens of the longest example that the model takes.

    Raises SQFTError for settings that do not fit the data or the number of processes, and as `tokenize` does.
    """
    # tokens
    check_training(training, bool(eval_examples), processes)
    if training.eval_fraction:
        examples, eval_examples = split(examples, training.eval_fraction, training.seed)
    task_rows, held_out, text_rows = (
        tokenize(part, tokenizer, training.max_length, training.long, context)
        for part in (examples, eval_examples, text)
    )
    for rows, given, what in ((task_rows, examples, "example"), (held_out, eval_examples, "held-out example")):
        if given and not rows:
            raise SQFTError(f"every {what} is longer than max_length={training.max_length} tokens: raise it")

    # general text of each batch
    texts = texts_of_a_batch(training)
    if texts and not text_rows:
        raise SQFTError(
            f"text_fraction={training.text_fraction:g}, but the general text has no piece of a dozen words: give "
            "another text, with blanks between its words, or leave text_fraction out"
        )

    # lengths that depend on the data
    changes: dict[str, int] = {}
    if training.epochs is not None:
        changes["steps"] = math.ceil(len(task_rows) * training.epochs / (training.batch_size - texts))
    if held_out and training.eval_every is None:
        changes["eval_every"] = math.ceil(changes.get("steps", training.steps) / 10)
    training = training.model_copy(update=changes)
    training.check_size()

    ordered: Sequence[Row] = task_rows
    if training.steps:
        ordered = mix(task_rows, text_rows, training.text_fraction, training.batch_size, training.steps, training.seed)
    dropped = len(examples) + len(eval_examples) - len(task_rows) - len(held_out)
    return Prepared(ordered, held_out, training, len(task_rows), dropped)


def open_tokenizer(base: str | Path, training: TrainSettings) -> tuple[Any, int | None]:
    """The tokenizer of a model, or the one that was asked for, with the chat template that was asked for, and the
    model's context in tokens: None where it has no limit (ALiBi). Raises SQFTError."""
    tokenizer = load_tokenizer(training.tokenizer or base)
    if training.chat_template is not None:
        tokenizer.chat_template = read_template(training.chat_template)
    return tokenizer, getattr(transformers_config(base).get_text_config(), "max_position_embeddings", None) or None


def texts_of_a_batch(training: TrainSettings) -> int:
    """How many examples of a batch are general text."""
    return round(training.batch_size * training.text_fraction)


def check_training(training: TrainSettings, evaluated: bool, processes: int) -> None:
    """What needs no data. evaluated: there are files of held-out examples. Raises SQFTError."""
    training.check_run(evaluated)
    parts = training.gradient_accumulation * processes
    if training.batch_size % parts:
        raise SQFTError(
            f"batch_size={training.batch_size} is that of all {processes} processes and cannot be cut into {parts} "
            f"equal parts: use a multiple of {parts}"
        )
    if texts_of_a_batch(training) == training.batch_size:
        raise SQFTError(
            f"text_fraction={training.text_fraction:g} of batch_size={training.batch_size} leaves no example: lower it"
        )
