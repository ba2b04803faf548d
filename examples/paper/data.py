"""Training data for the recipes of this folder: the training questions of evaluation tasks, in the very form in which
the tasks ask them.

    python data.py gsm8k                       # data/gsm8k.jsonl
    python data.py commonsense                 # data/commonsense.jsonl: the seven tasks, from the hub
    python data.py math math_10k.json          # data/math.jsonl, of LLM-Adapters' file (ft-training_set/math_10k.json)
    python data.py arc-easy openbookqa         # any tasks of `sqft eval`, in a file called after the first
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sqft_plugins.checkpoint import write_file
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.harness import load_tasks

SEVEN = [
    f"lm-eval:{name}"
    for name in ("piqa", "arc_easy", "arc_challenge", "hellaswag", "openbookqa", "boolq", "winogrande")
]
OUT = Path(__file__).with_name("data")


def task_rows(names: list[str]) -> Iterator[dict[str, str]]:
    """prompt and completion of every training question."""
    for name, task in load_tasks(names, os.environ.get("SQFT_DATA_DIR"))["tasks"].items():
        if not task.has_training_docs():
            raise SQFTError(f"task {name} has no training questions: leave it out")
        for doc in task.training_docs():
            options, prompt, answer = task.config.doc_to_choice, task.doc_to_text(doc), task.doc_to_target(doc)
            if options is not None:
                choices = task.doc_to_choice(doc)
                prompt = choices[prompt] if isinstance(prompt, int) else prompt  # Winogrande chooses the beginning
                answer = choices[answer] if isinstance(answer, int) else answer
            yield {"prompt": prompt, "completion": f"{task.config.target_delimiter}{answer}"}


def instruction_rows(file: Path) -> Iterator[dict[str, str]]:
    """LLM-Adapters' {"instruction", "output"}, asked as `sqft eval` asks."""
    for row in json.loads(file.read_text(encoding="utf-8")):
        yield {"prompt": f"Question: {row['instruction'].strip()}\nAnswer:", "completion": f" {row['output'].strip()}"}


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit(__doc__)
    name = arguments[0].removeprefix("lm-eval:")
    if name == "math":
        rows = list(instruction_rows(Path(arguments[1])))
    else:
        rows = list(task_rows(SEVEN if name == "commonsense" else arguments))
    with write_file(OUT / f"{name}.jsonl", overwrite=True) as target:
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{OUT / name}.jsonl: {len(rows)} examples")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SQFTError, IndexError, OSError) as error:
        sys.exit(f"data.py: {error}")
