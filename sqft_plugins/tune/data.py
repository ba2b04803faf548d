"""Training data: lines of JSON, tokenized so that only what is to be answered is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.text_file import read_text
from sqft_plugins.tune.chat import Chat, chat_tokens

IGNORED = -100
"""The label of a token whose loss does not count, as everywhere in transformers."""
FORMS = '{"prompt": …, "completion": …}, {"messages": […]} or {"text": …}'
T = TypeVar("T")
Row = dict[str, list[int]]
"""input_ids and labels of one example."""


@dataclass(frozen=True)
class Example:
    """One line of training data. An empty prompt is plain text: every token is learned. where: file and line, for
    errors."""

    prompt: str
    completion: str
    where: str = field(default="", compare=False, repr=False)


def read_jsonl(path: str | Path, argument: str = "--data") -> list[Example]:
    """Reads a JSONL of {"prompt": …, "completion": …}. Raises SQFTError that names the line."""
    return [_question(row, where) for row, where in _lines(path, argument)]


def read_examples(path: str | Path, argument: str = "--data") -> list[Example | Chat]:
    """Reads a JSONL whose lines have `prompt` and `completion`, or `messages` (a conversation, with `tools` if need
    be), or `text` (all of it is learned). Raises SQFTError that names the line."""
    return [_example(row, where) for row, where in _lines(path, argument)]


def _lines(path: str | Path, argument: str) -> list[tuple[dict[str, Any], str]]:
    """The objects of a JSONL, each with its place in words."""
    text = read_text(path, argument, f"give a JSONL, a line such as {FORMS}")

    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold other line ends within a text
        if not line.strip():
            continue
        where = f"{argument} {path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise SQFTError(f"{where} is not JSON ({getattr(error, 'msg', error)}): correct or remove it") from error
        if not isinstance(row, dict):
            raise SQFTError(f"{where} is not an object: write {FORMS}")
        _check_characters(line, row, where)
        rows.append((row, where))

    if not rows:
        raise SQFTError(f"{argument} {path} has no examples: write one JSON object a line")
    return rows


def _check_characters(line: str, row: Mapping[str, Any], where: str) -> None:
    if "\\ud" not in line.lower():
        return
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise SQFTError(f"{where} has half of a character ({half}), which is no text: correct or remove it") from error


def _example(row: Mapping[str, Any], where: str) -> Example | Chat:
    if "messages" in row:
        return _conversation(row, where)
    if "prompt" in row or "completion" in row:
        return _question(row, where)
    if not isinstance(row.get("text"), str):
        raise SQFTError(f"{where} is none of {FORMS}: keys there: {sorted(row)}")
    if not row["text"].strip():
        raise SQFTError(f"{where} has an empty text: remove the line")
    return Example("", row["text"], where)


def _question(row: Mapping[str, Any], where: str) -> Example:
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), str):
            other = nearest(key, row).split(" known:")[0] if row else ""
            raise SQFTError(f"{where} has no text {key!r}: {other} keys there: {sorted(row)}")
    return Example(row["prompt"], row["completion"], where)


def _conversation(row: Mapping[str, Any], where: str) -> Chat:
    messages, tools = row["messages"], row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise SQFTError(f'{where}: messages is no list: write [{{"role": "user", "content": …}}, …]')

    for number, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if key == "content" and _calls_only(message):
                continue
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise SQFTError(f'{where}: message {number} has no text {key!r}: write {{"role": …, "content": …}}')

    if messages[-1]["role"] != "assistant":
        raise SQFTError(
            f"{where}: the last message is of role {messages[-1]['role']!r}: nothing answers it, so end with one of "
            "'assistant'"
        )
    if tools is not None and not isinstance(tools, list):
        raise SQFTError(f"{where}: tools is no list: write the descriptions of the functions as a list")
    return Chat(messages, tools, where)


def _calls_only(message: Mapping[str, Any]) -> bool:
    """Whether a message calls tools and says nothing, as chat APIs return it."""
    return message["role"] == "assistant" and message.get("content") is None and bool(message.get("tool_calls"))


def text_examples(texts: Iterable[str], words: int = 24) -> list[Example]:
    """General text in pieces of `words` words, about as long as a task's examples, so that a batch needs no padding."""
    pieces = []
    for text in texts:
        parts = text.split(" ")
        pieces += [" ".join(parts[i : i + words]) for i in range(0, len(parts), words)]
    return [Example("", piece) for piece in pieces if len(piece.split()) >= words // 2]


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


class Examples(Dataset):
    """Tokenized examples as Trainer takes them."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


@dataclass
class Collator:
    """Pads a batch on the right → input_ids, attention_mask, labels, each int64 [batch, tokens]."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

        lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
        mask = (torch.arange(width)[None] < lengths).long()
        return {"input_ids": padded("input_ids", self.pad), "attention_mask": mask, "labels": padded("labels", IGNORED)}


def mix(task: Sequence, text: Sequence, text_fraction: float, batch_size: int, steps: int, seed: int) -> list:
    """`steps * batch_size` rows in training order: in each batch the same share of general text, both kinds shuffled
    anew every time they run out. Deterministic in `seed`."""
    generator = torch.Generator().manual_seed(seed)
    texts = round(batch_size * text_fraction) if text else 0

    def endless(rows: Sequence):
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
