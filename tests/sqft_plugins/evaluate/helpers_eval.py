"""Small local data for the evaluation tasks, in the form of the real files, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqft_plugins.cli import main

WORDS = ["water", "stone", "light", "engine", "garden", "paper", "metal", "cloud", "river", "table", "window", "bread"]


def option_row(number: int, options: int = 4, answer: str | None = None) -> dict[str, str]:
    """A row as in arc_easy/test.json."""
    chosen = [f"the {WORDS[(number + at) % 12]} {WORDS[(number * at + 5) % 12]}" for at in range(options)]
    listed = " ".join(f"Answer{at}: {text}" for at, text in enumerate(chosen, 1))
    return {
        "instruction": "Please choose the correct answer to the question: Which of these is near the "
        f"{WORDS[number % 12]}{' again' * (number % 3)}?\n\n{listed}\n\nAnswer format: answer1/answer2",
        "answer": answer or f"answer{number % options + 1}",
    }


def write_data(folder: Path, rows: int = 12) -> Path:
    """`folder` with arc_easy, boolq, svamp, mawps and gsm8k."""

    def write(name: str, content: list[dict]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(map(json.dumps, content))
        (folder / name).write_text(lines if name.endswith("l") else json.dumps(content))

    options = [option_row(number, 3 + number % 3) for number in range(rows)]
    yes_no = [
        {
            "instruction": f"Please answer the following question with true or false, question: is {word} wet?\n\n"
            "Answer format: true/false",
            "answer": "true" if len(word) > 5 else "false",
        }
        for word in WORDS[:rows]
    ]
    numbers = [{"instruction": f"Ada has {n} eggs and {n}. How many?", "answer": f"{2 * n}.0"} for n in range(rows)]
    train = [{"original_text": f"Ben has {n} eggs and gets 1. How many?", "ans": n + 1.0} for n in range(rows)]
    school = [
        {"question": f"Ada has {n} eggs and gets {n}.", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        for n in range(rows)
    ]
    for split in ("test", "train"):
        write(f"arc_easy/{split}.json", options)
        write(f"boolq/{split}.json", yes_no)
        write(f"gsm8k/{split}.jsonl", school)
    write("svamp/test.json", numbers)
    write("mawps/test.json", numbers)
    write("mawps/train.json", train)
    return folder


def break_row(data, content) -> None:
    rows = json.loads((data / "arc_easy/test.json").read_text())
    rows[2] = content
    (data / "arc_easy/test.json").write_text(json.dumps(rows))


def sqft(*arguments) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def by_item(report: dict, task: str) -> list[dict]:
    return sorted(report["samples"][task], key=lambda sample: sample["doc_id"])
