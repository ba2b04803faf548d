"""Training data as tokens: of an example only what is to be answered is learned. `examples` reads the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.chat import Chat, chat_tokens
from sqft_plugins.tune.examples import Example

IGNORED = -100
"""The label of a token whose loss does not count, as everywhere in transformers."""
T = TypeVar("T")
Row = dict[str, list[int]]
"""input_ids and labels of one example."""


def tokenize(
    examples: Iterable[Example | Chat],
    tokenizer: Any,
    max_length: int,
    long: Literal["error", "drop"] = "error",
    context: int | None = None,
) -> list[Row]:
    """{input_ids, labels} for each example; a completion ends with the end-of-text token.

    max_length: tokens of the longest example; context: those that the model takes.
    long: "error": a longer example raises SQFTError; "drop": it is left out.

    Raises SQFTError for an example without a token to learn, too.
    """
    rows = []
    for number, example in enumerate(examples, 1):
        where = example.where or f"example {number}"
        row = _tokens(example, tokenizer, where)
        length = len(row["input_ids"])

        if all(label == IGNORED for label in row["labels"][1:]):  # nothing predicts the first token
            raise SQFTError(f"{where} has no token to learn: give it a completion, or remove it")
        if length > max_length and long == "error":
            raise SQFTError(f"{where} has {length} tokens, max_length={max_length}: shorten it or raise max_length")
        if context is not None and length > context and long == "error":
            raise SQFTError(
                f"{where} has {length} tokens, the model's context is {context}: shorten it or leave it out"
            )

        if length <= min(max_length, context or max_length):
            rows.append(row)
    return rows


def _tokens(example: Example | Chat, tokenizer: Any, where: str) -> Row:
    if isinstance(example, Chat):
        tokens, learned = chat_tokens(example, tokenizer, where)
        labels = [token if learn else IGNORED for token, learn in zip(tokens, learned, strict=True)]
        return {"input_ids": tokens, "labels": labels}
    prompt = tokenizer(example.prompt).input_ids
    completion = tokenizer(example.completion, add_special_tokens=False).input_ids
    if example.prompt and tokenizer.eos_token_id is not None:
        completion = [*completion, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def split(examples: Sequence[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """(training, held out): at least one example in each, drawn by `seed`, in their order. Raises SQFTError for fewer
    than two examples."""
    if len(examples) < 2:
        raise SQFTError(f"eval_fraction={fraction:g} of {len(examples)} example: give at least two, or --eval-data")
    count = min(max(1, round(len(examples) * fraction)), len(examples) - 1)
    drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
    held_out = set(drawn.tolist())
    parts: tuple[list[T], list[T]] = ([], [])
    for index, example in enumerate(examples):
        parts[index in held_out].append(example)
    return parts


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """int64 [rows, tokens], filled up with `value` on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@dataclass
class Collator:
    """Pads a batch on the right → input_ids, attention_mask, labels, each int64 [batch, tokens]."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        tokens = [row["input_ids"] for row in rows]
        return {
            "input_ids": padded(tokens, self.pad),
            "attention_mask": padded([[1] * len(row) for row in tokens], 0),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }


def batches_by_length(rows: Sequence[Row], batch_size: int, pad: int) -> tuple[list[dict[str, Tensor]], list[int]]:
    """The rows in batches of about equal length, as `Collator` pads them, and the place of each of their rows in
    `rows`."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collate = Collator(pad)
    return [collate([rows[index] for index in part]) for part in parts], order


def mix(task: Sequence[T], text: Sequence[T], text_fraction: float, batch_size: int, steps: int, seed: int) -> list[T]:
    """`steps * batch_size` rows in training order: in each batch the same share of general text, both kinds shuffled
    anew every time they run out. Deterministic in `seed`."""
    generator = torch.Generator().manual_seed(seed)
    texts = round(batch_size * text_fraction) if text else 0

    def endless(rows: Sequence[T]) -> Iterator[T]:
        while True:
            for index in torch.randperm(len(rows), generator=generator).tolist():
                yield rows[index]

    task_rows, text_rows = endless(task), endless(text) if texts else None

    order = []
    for _ in range(steps):
        batch = [next(task_rows) for _ in range(batch_size - texts)]
        if text_rows is not None:
            batch += [next(text_rows) for _ in range(texts)]
        order += batch
    return order
