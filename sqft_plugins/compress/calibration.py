"""Calibration: text → a batch of tokens, every sequence of one length and without padding.

The default text needs no network: the language reference that every CPython ships as `pydoc_data.topics`. Its topics
are split once and for all, so that nobody measures perplexity on text a pruner was calibrated on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqft_plugins.errors import DependencyError, SQFTError, first_line
from sqft_plugins.text_file import json_lines, parse_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

SPREAD = 16
"""Tokenized is up to this many times the tokens that are needed, and the sequences are spread evenly over it."""
PAIRS = (("prompt", "completion", ""), ("question", "answer", "\n"), ("instruction", "output", "\n"))
"""Fields of a record that make one text together, and what goes between them."""
DATASET = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[^:]*){0,2}")
ENDS = (".txt", ".md", ".json", ".jsonl")
"""Of names that are files and no data sets."""
WANTED = "give a text file, or a JSONL with `text` in every line"
SHORTEST = 200
"""Characters below which the rest of a held-out topic is a heading and no text."""


def builtin_text(split: Literal["train", "heldout"]) -> list[str]:
    """The topics of Python's language reference, one text each: "train" for calibration and for general text in
    tuning, "heldout" for evaluation.

    A topic is held out where the SHA-256 of its name says so (one in four). Topics quote each other, so paragraphs of a
    held-out topic that also stand in a training topic are cut out of it (and the topic is left out where little
    remains): the two splits share no paragraph. The same on every machine with the same Python version; another
    version has another wording here and there.
    """
    from pydoc_data.topics import topics

    train = [topics[name] for name in sorted(topics) if not _is_held_out(name)]
    if split == "train":
        return train
    known = {_words(paragraph) for text in train for paragraph in _paragraphs(text)}
    texts = []
    for name in sorted(filter(_is_held_out, topics)):
        own = [paragraph for paragraph in _paragraphs(topics[name]) if _words(paragraph) not in known]
        text = "\n\n".join(own)
        if len(text) >= SHORTEST:
            texts.append(text)
    return texts


def read_texts(path: str | Path, argument: str = "--calibration") -> list[str]:
    """The texts of a file: of each record of a JSONL (`*.jsonl`) or a JSON list (`*.json`) the field `text`, or two
    fields that belong together (`PAIRS`); any other file is one text.

    Raises SQFTError where the file is missing, not UTF-8, empty, or has a broken record (named by number).
    """
    path = Path(path)
    content = read_text(path, argument, WANTED)
    if path.suffix == ".json" and content.lstrip().startswith("["):
        records = parse_json(content, f"{argument} {path}")
        texts = [record_text(record, f"{argument} {path} record {number}") for number, record in enumerate(records, 1)]
    elif path.suffix in (".jsonl", ".json"):
        texts = [record_text(record, where) for record, where in json_lines(content, f"{argument} {path}")]
    else:
        texts = [content]
    if not any(text.strip() for text in texts):
        raise SQFTError(f"{argument} {path} holds no text: give a file with some thousand words")
    return texts


def dataset_texts(name: str, argument: str = "--calibration") -> Iterator[str]:
    """The texts of a Hugging Face data set, `NAME[:CONFIG[:SPLIT]]`, split "train" by default, one after the other as
    they are asked for. Raises SQFTError for a set that it does not find."""
    from datasets import load_dataset

    path, config, split = [*name.split(":"), "", ""][:3]
    try:
        rows = load_dataset(path, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield record_text(row, f"{argument} {name} row {number}")
    except SQFTError:
        raise
    except Exception as error:  # of many kinds: missing, offline, gated, an unknown configuration, a broken file
        raise SQFTError(
            f"{argument} {name} is neither a file nor a data set that can be read: check NAME:CONFIG:SPLIT "
            f"({first_line(error)})"
        ) from error


def calibration_texts(source: str | Path | None, argument: str = "--calibration") -> Iterable[str]:
    """The texts of a file or data set, or the built-in training split where `source` is None."""
    if source is None:
        return builtin_text("train")
    check_texts(str(source), argument)
    return read_texts(source, argument) if Path(source).is_file() else dataset_texts(str(source), argument)


def check_texts(source: str, argument: str = "--calibration") -> None:
    """Raises SQFTError for what is neither a file nor can be the name of a data set, DependencyError for such a name
    where the `datasets` package is missing. Nothing is read. A folder is never taken for a data set of its name."""
    path = Path(source)
    if path.is_file():
        return
    if path.exists() or source.endswith(ENDS) or not DATASET.fullmatch(source):
        raise SQFTError(f"{argument} {source} is not a file: {WANTED}")
    if find_spec("datasets") is None:
        raise DependencyError(
            f"{argument} {source} is no file, and a data set by name needs: pip install 'sqft-plugins[data]'"
        )


def token_batch(texts: Iterable[str], tokenizer: Any, sequences: int = 32, length: int = 128) -> Tensor:
    """int64 [sequences, length]. Texts are joined end to end and cut; every sequence begins with the BOS token where
    the tokenizer has one. The sequences are spread evenly over the text. Raises SQFTError for too little text."""
    import torch  # late: settings check where a text comes from without it

    if sequences < 1 or length < 2:
        raise SQFTError(
            f"sequences={sequences} of length={length} are no calibration batch: use at least 1 of length 2"
        )

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    piece = length - len(start)
    tokens: list[int] = []
    for text in texts:
        # a text longer than the model's window is cut into pieces below, so the tokenizer need not warn
        tokens += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) >= SPREAD * sequences * piece:
            break

    pieces = len(tokens) // piece
    if pieces < sequences:
        raise SQFTError(
            f"calibration text has {len(tokens)} tokens but sequences={sequences} of length={length} need "
            f"{sequences * piece}: give more text, or fewer or shorter sequences"
        )

    # spread evenly
    first = torch.tensor([index * pieces // sequences * piece for index in range(sequences)])
    rows = torch.tensor(tokens)[first[:, None] + torch.arange(piece)]  # [sequences, piece]
    return torch.cat([torch.tensor([start] * sequences, dtype=torch.int64).reshape(sequences, -1), rows], dim=1)


def record_text(record: Any, where: str) -> str:
    """The text of one record: `text`, or one of the `PAIRS`. Raises SQFTError that says `where`."""
    if isinstance(record, dict):
        if isinstance(record.get("text"), str):
            return record["text"]
        for first, second, between in PAIRS:
            parts = record.get(first), record.get(second)
            if all(isinstance(part, str) for part in parts):
                return f"{parts[0]}{between}{parts[1]}"
    raise SQFTError(f"{where} has neither `text` nor `prompt` and `completion`: name the fields so")


def _is_held_out(topic: str) -> bool:
    return hashlib.sha256(topic.encode()).digest()[0] % 4 == 0


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text.strip("\n"))


def _words(paragraph: str) -> str:
    return " ".join(paragraph.split())
