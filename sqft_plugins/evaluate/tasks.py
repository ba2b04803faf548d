"""Tasks out of files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sqft_plugins.plugins.protocols import Item
from sqft_plugins.tune.examples import Example, read_jsonl


class JsonlTask:
    """Every line of a `prompt`/`completion` JSONL is a question; right is a completion whose first line is the gold
    one. Raises SQFTError for a file that cannot be read."""

    def __init__(self, path: str | Path, examples: Sequence[Example] | None = None):
        self.name = Path(path).stem
        self._examples = read_jsonl(path) if examples is None else list(examples)

    def items(self) -> Sequence[Item]:
        return [Item(example.prompt, example.completion) for example in self._examples]

    def is_correct(self, item: Item, completion: str) -> bool:
        return _first_line(completion) == _first_line(item.answer)


def split_examples(examples: Sequence[Example], share: int = 5) -> tuple[list[Example], list[Example]]:
    """(training, held out): an example is held out where the SHA-256 of its prompt says so, one in `share`; equal
    prompts are on one side."""
    held_out: list[Example] = []
    training: list[Example] = []
    for example in examples:
        side = held_out if hashlib.sha256(example.prompt.encode()).digest()[0] % share == 0 else training
        side.append(example)
    return training, held_out


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].strip()
