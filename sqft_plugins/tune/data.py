"""Training data: `prompt`/`completion` lines, tokenized so that only the completion is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sqft_plugins.errors import SQFTError, nearest

IGNORED = -100
"""The label of a token whose loss does not count, as everywhere in transformers."""


@dataclass(frozen=True)
class Example:
    """One line of training data. An empty prompt is plain text: every token is learned."""

    prompt: str
    completion: str


def read_jsonl(path: str | Path) -> list[Example]:
    """Reads a JSONL of {"prompt": …, "completion": …}. Raises SQFTError that names the line."""
    path = Path(path)
    if not path.is_file():
        raise SQFTError(f"--data {path} is not a file: give a JSONL with prompt and completion on each line")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SQFTError(f"--data {path} line {number} is not JSON ({error.msg}): correct or remove it") from error
        if not isinstance(row, dict):
            raise SQFTError(f'--data {path} line {number} is not an object: write {{"prompt": …, "completion": …}}')
        for key in ("prompt", "completion"):
            if not isinstance(row.get(key), str):
                other = nearest(key, row).split(" known:")[0] if row else ""
                raise SQFTError(f"--data {path} line {number} has no text {key!r}: {other} keys there: {sorted(row)}")
        examples.append(Example(row["prompt"], row["completion"]))
    if not examples:
        raise SQFTError(f"--data {path} has no examples: write one JSON object a line")
    return examples


def text_examples(texts: Iterable[str], words: int = 24) -> list[Example]:
    """General text in pieces of `words` words, about as long as a task's examples, so that a batch needs no padding."""
    pieces = []
    for text in texts:
        parts = text.split(" ")
        pieces += [" ".join(parts[i : i + words]) for i in range(0, len(parts), words)]
    return [Example("", piece) for piece in pieces if len(piece.split()) >= words // 2]


def tokenize(examples: Iterable[Example], tokenizer, max_length: int) -> list[dict[str, list[int]]]:
    """{input_ids, labels} for each example; the completion ends with the end-of-text token. Raises SQFTError for an
    example longer than `max_length` tokens."""
    rows = []
    for number, example in enumerate(examples, 1):
        prompt = tokenizer(example.prompt).input_ids
        completion = tokenizer(example.completion, add_special_tokens=False).input_ids
        if example.prompt and tokenizer.eos_token_id is not None:
            completion = [*completion, tokenizer.eos_token_id]
        if len(prompt) + len(completion) > max_length:
            raise SQFTError(
                f"example {number} has {len(prompt) + len(completion)} tokens, max_length={max_length}: "
                "shorten it or raise max_length"
            )
        rows.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
    return rows


class Examples(Dataset):
    """Tokenized examples as Trainer takes them."""

    def __init__(self, rows: Sequence[dict[str, list[int]]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


@dataclass
class Collator:
    """Pads a batch on the right → input_ids, attention_mask, labels, each int64 [batch, tokens]."""

    pad: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
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
