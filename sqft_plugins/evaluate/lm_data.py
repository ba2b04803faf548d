"""The questions of our lm-evaluation-harness tasks (`lm_tasks/*.yaml`), out of local files or from the hub.

Local files are those of the paper's reference code (AGI-Edgerunners/LLM-Adapters), one folder a task, and GSM8K's own.
A row becomes {question, choices, gold} or {question, answer, number}; one that does not make sense is named by its
number. The forms on the hub follow the data cards.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import SQFTError, first_line, nearest
from sqft_plugins.variables import DATA_DIR

if TYPE_CHECKING:
    from datasets import Dataset

TOLERANCE = 1e-3
"""Numbers are equal where they differ by no more, as in LLM-Adapters; its answers are such as 1.8333333333333335."""
Convert = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A row → a question."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


# --- rows → questions; each raises ValueError saying what is wrong ---


def local_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """The options stand inside `instruction`, as `Answer1: … Answer2: …`; `answer` is such as `answer2`."""
    body, _, _ = _text(row, "instruction").partition("\n\nAnswer format:")
    question, *options = re.split(r"\s*\bAnswer\d+:\s*", body)
    if len(options) < 2:
        raise ValueError("instruction has no options: write `Answer1: … Answer2: …`")
    question = question.partition("to the question:")[2] or question
    return _checked(question, options, [f"answer{n}" for n in range(1, len(options) + 1)], _text(row, "answer"))


def local_yes_no(row: Mapping[str, Any]) -> dict[str, Any]:
    """`answer` is `true` or `false`."""
    body, _, _ = _text(row, "instruction").partition("\n\nAnswer format:")
    question = body.partition("question:")[2] or body
    return _checked(question, ["no", "yes"], ["false", "true"], _text(row, "answer"))


def local_number(row: Mapping[str, Any]) -> dict[str, Any]:
    """instruction and answer, or (MAWPS' training rows) original_text and ans."""
    if "original_text" in row:
        return _numbered(_text(row, "original_text"), row.get("ans"))
    return _numbered(_text(row, "instruction"), row.get("answer"))


def gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    """The answer is a rationale that ends with `#### number`."""
    rationale, mark, number = _text(row, "answer").rpartition("#### ")
    if not mark:
        raise ValueError("answer does not end with `#### number`")
    return _numbered(_text(row, "question"), number) | {"answer": f"{rationale}#### {number}"}


def hub_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/ai2_arc and allenai/openbookqa."""
    question = row["question"] if "question" in row else row["question_stem"]
    return _checked(question, row["choices"]["text"], row["choices"]["label"], row["answerKey"])


def hub_yes_no(row: Mapping[str, Any]) -> dict[str, Any]:
    """google/boolq, without its passage."""
    return _checked(f"{row['question']}?", ["no", "yes"], ["False", "True"], str(row["answer"]))


def hub_number(question: str, answer: str) -> Convert:
    """A question and its number, in the columns of these names."""
    return lambda row: _numbered(row[question], row[answer])


@dataclass(frozen=True)
class TaskRows:
    """Where a task's rows are. files: split → file in `folder`. splits: split → the hub's."""

    folder: str
    local: Convert
    hub: tuple[str, str | None]
    remote: Convert
    files: Mapping[str, str] = field(default_factory=lambda: {"test": "test.json", "train": "train.json"})
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test", "train": "train"})


SOURCES = {
    "arc-easy": TaskRows("arc_easy", local_options, ("allenai/ai2_arc", "ARC-Easy"), hub_options),
    "arc-challenge": TaskRows("arc_challenge", local_options, ("allenai/ai2_arc", "ARC-Challenge"), hub_options),
    "openbookqa": TaskRows("openbookqa", local_options, ("allenai/openbookqa", "main"), hub_options),
    "boolq": TaskRows(
        "boolq", local_yes_no, ("google/boolq", None), hub_yes_no, splits={"test": "validation", "train": "train"}
    ),
    "gsm8k": TaskRows(
        "gsm8k", gsm8k, ("openai/gsm8k", "main"), gsm8k, files={"test": "test.jsonl", "train": "train.jsonl"}
    ),
    "svamp": TaskRows(
        "svamp",
        local_number,
        ("ChilleD/SVAMP", None),
        hub_number("question_concat", "Answer"),
        files={"test": "test.json"},
        splits={"test": "train+test"},  # all 1,000, as the local file
    ),
    "mawps": TaskRows("mawps", local_number, ("MU-NLPC/Calc-mawps", None), hub_number("question", "result_float")),
}


def load(source: str, data_dir: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """split → data set, as a task file's `custom_dataset`. data_dir: the folder of the tasks' folders; else that of
    SQFT_DATA_DIR; else the hub. Raises SQFTError that names file and row."""
    from datasets import Dataset

    at, data_dir = SOURCES[source], data_dir or os.environ.get(DATA_DIR)
    found = {}

    for split, file in (at.files if data_dir else at.splits).items():
        if data_dir:
            name = str(Path(data_dir) / at.folder / file)
            rows: Iterable[Any]
            rows, convert = read_rows(Path(name), data_dir), at.local
        else:
            name = f"{at.hub[0]}, split {file},"
            rows, convert = _hub_rows(at, file), at.remote

        docs = list(_converted(rows, convert, name))
        if not docs:
            raise SQFTError(f"{name} is empty: the task {source} needs questions, copy the data again")
        found[split] = Dataset.from_list(docs)
    return found


def read_rows(file: Path, data_dir: str | Path) -> list[Any]:
    """The rows of a JSON list or a JSONL. Raises SQFTError."""
    if not file.is_file():
        there = sorted(path.name for path in Path(data_dir).glob("*/")) if Path(data_dir).is_dir() else []
        raise SQFTError(
            f"--data-dir {data_dir} has no {file.parent.name}/{file.name}: {nearest(file.parent.name, there)}"
        )

    text, number = file.read_text(encoding="utf-8"), 0
    try:
        if file.suffix != ".jsonl":
            rows = json.loads(text)
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), 1):  # noqa: B007 (named in the error)
                if line.strip():
                    rows.append(json.loads(line))
    except json.JSONDecodeError as error:
        raise SQFTError(
            f"{file} line {number or error.lineno} is not JSON ({error.msg}): copy the data again"
        ) from error

    if not isinstance(rows, list):
        raise SQFTError(f"{file} is no list of rows: copy the data again")
    return rows


def _hub_rows(at: TaskRows, split: str) -> Iterable[Any]:
    from datasets import load_dataset

    try:
        rows: Iterable[Any] = load_dataset(*at.hub, split=split)
        return rows
    except Exception as error:  # the hub, the network and the data set may fail in any way
        raise SQFTError(
            f"{at.hub[0]} cannot be loaded from the hub ({first_line(error)}): give local files with --data-dir or "
            f"{DATA_DIR}"
        ) from error


def _converted(rows: Iterable[Any], convert: Convert, name: str) -> Iterable[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        try:
            yield convert(row)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise SQFTError(f"{name} row {number}: {reason}: correct or remove it") from error


def _text(row: Mapping[str, Any], key: str) -> str:
    text = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f"no text {key!r}")
    return text


def _checked(question: str, options: Iterable[str], labels: list[str], answer: str) -> dict[str, Any]:
    choices = [option.strip() for option in options]
    if not question.strip() or not all(choices):
        raise ValueError("the question or an option is empty")
    if answer not in labels:
        raise ValueError(f"answer {answer!r} is not one of {', '.join(labels)}")
    return {"question": question.strip(), "choices": choices, "gold": labels.index(answer)}


def _numbered(question: str, number: Any) -> dict[str, Any]:
    value = parse_number(str(number))
    if not question.strip():
        raise ValueError("the question is empty")
    if value is None:
        raise ValueError(f"answer {number!r} is not a number")
    return {"question": question.strip(), "answer": f"{value:.12g}", "number": value}


# --- what the model wrote → right or wrong ---


def parse_number(text: str) -> float | None:
    """The last number of a text, None where it has none."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def judge_number(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Right where the last number written is the answer."""
    return {"exact_match": _equal(parse_number(results[0]), doc["number"])}


def judge_gsm8k(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """exact_match: the number after the first `####`, the first where several follow. last_number: the last written."""
    after = _NUMBER.search(results[0].partition("####")[2].strip().split("\n")[0])
    return {
        "exact_match": _equal(None if after is None else parse_number(after.group()), doc["number"]),
        "last_number": _equal(parse_number(results[0]), doc["number"]),
    }


def _equal(number: float | None, gold: float) -> float:
    return float(number is not None and abs(number - gold) <= TOLERANCE)
