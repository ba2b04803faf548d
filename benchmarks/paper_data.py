"""The two task groups of the paper's table: training text in the form that the tasks of `sqft eval` ask."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.harness import FOLDER
from sqft_plugins.evaluate.lm_data import SOURCES, TOLERANCE, judge_number, read_rows
from sqft_plugins.evaluate.tasks import split_examples
from sqft_plugins.tune.examples import Example

OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


@dataclass(frozen=True)
class Group:
    """tasks: of `sqft eval`, trained on and tested on. metric: which of the task's metrics the table shows, or
    "calculated" (`is_right`)."""

    tasks: tuple[str, ...]
    metric: str


GROUPS = {"commonsense": Group(("arc-easy", "openbookqa"), "acc_norm"), "maths": Group(("mawps",), "calculated")}
METRICS = {task: group.metric for group in GROUPS.values() for task in group.tasks}


@cache
def examples(tasks: tuple[str, ...], data_dir: str | Path) -> tuple[list[Example], list[Example]]:
    """(training, held out): the train rows of the tasks; one question in five is kept from training, for the search.
    Raises SQFTError that names the file and the row."""
    return split_examples([example for task in tasks for example in read_task(task, data_dir)])


def read_task(task: str, data_dir: str | Path) -> list[Example]:
    """The train rows of one task; of MAWPS those whose equation gives the answer (all but a few)."""
    source = SOURCES[task]
    file = Path(data_dir) / source.folder / source.files["train"]
    found = []
    for number, row in enumerate(read_rows(file, data_dir), 1):
        try:
            text = completion(source.local(row), row)
        except (ValueError, KeyError, TypeError) as error:
            raise SQFTError(f"{file} row {number}: {error}: correct or remove it") from error
        if text is not None:
            found.append(Example(f"Question: {source.local(row)['question']}\nAnswer:", f" {text}"))
    return found


def completion(doc: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """The text of the right option; of a word problem `(22 - 14) / 4 = 2`, None where the equation gives another."""
    if "choices" in doc:
        return doc["choices"][doc["gold"]]
    try:
        expression = ast.parse(row["equation"].partition("=")[2].strip(), mode="eval").body
        value = calculate(expression)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return f"{ast.unparse(expression)} = {doc['answer']}" if abs(value - doc["number"]) <= TOLERANCE else None


def calculate(node: ast.expr) -> float:
    """The value of + - * / over numbers; whole ones are turned into int in place, so that 22.0 is written 22."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        if float(node.value).is_integer():
            node.value = int(node.value)
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](calculate(node.left), calculate(node.right))
    raise ValueError("no sum of numbers")


def is_right(text: str, number: float) -> bool:
    """Whether the equation that stands in a completion has this value, whatever the model wrote behind its `=`: a model
    of this size finds the equation and cannot calculate. Without an equation, whether the last number is it."""
    try:
        value = calculate(ast.parse(text.partition("=")[0].strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return judge_number({"number": number}, [text])["exact_match"] == 1
    return abs(value - number) <= TOLERANCE


def task_files(names: tuple[str, ...], folder: Path, new_tokens: int) -> list[str]:
    """What `evaluate_model` takes: our tasks, those with written answers as files in `folder` that include ours and
    allow `new_tokens` (an equation is short, and an untuned model would go on to the end)."""
    found = []
    for name in names:
        if METRICS[name] != "calculated":
            found.append(name)
            continue
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        kwargs = f"{{until: ['Question:', \"\\n\\n\"], max_gen_toks: {new_tokens}, do_sample: false}}"
        file.write_text(f"include: {FOLDER / f'{name}.yaml'}\ntask: {name}\ngeneration_kwargs: {kwargs}\n")
        found.append(str(file))
    return found
