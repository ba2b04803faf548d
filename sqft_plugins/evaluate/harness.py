"""Tasks of lm-evaluation-harness: ours (`lm_tasks/*.yaml`), and its own as `lm-eval:NAME`."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import DependencyError, SQFTError, first_line, nearest
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.plugins import get_manager
from sqft_plugins.progress import say

if TYPE_CHECKING:
    from sqft_plugins.evaluate.candidate import Candidate

FOLDER = Path(__file__).with_name("lm_tasks")
FOREIGN = "lm-eval:"
SEED = 1234
"""Chooses the examples before a question; also lm-eval's default."""
PARTS = ("results", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks", "groups")
"""What is kept of lm-eval's report, and all that its table needs."""


def task_names() -> list[str]:
    """Our tasks; needs no lm_eval."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.yaml"))


def check_names(names: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raises SQFTError for a name that is neither a file, nor lm-eval's, nor one of ours or `known`."""
    every = [*task_names(), *known]
    for name in names:
        is_file = name.endswith(".yaml") and Path(name).is_file()
        if name not in every and not name.startswith(FOREIGN) and not is_file:
            raise SQFTError(
                f"--task {name!r} is unknown: {nearest(name, every)}; lm-evaluation-harness' own are {FOREIGN}NAME"
            )


def choose_tasks(names: Iterable[str], data: str | Path | None = None) -> list[Any]:
    """What `evaluate_model` takes for these names and a JSONL of questions: names for lm-evaluation-harness, the tasks
    of plug-ins, `JsonlTask`. Raises SQFTError for an unknown name and for broken data."""
    own = get_manager().collect("sqft_tasks")
    names = list(dict.fromkeys(names))
    check_names(names, own)
    chosen: list[Any] = [own.get(name, name) if name not in task_names() else name for name in names]
    return [*chosen, JsonlTask(data)] if data else chosen


def load_tasks(names: Sequence[str], data_dir: str | Path | None = None, shots: int | None = None) -> dict[str, Any]:
    """The tasks and groups of these names, as lm-eval's TaskDict.

    data_dir: the local data of our tasks; default the hub.
    shots: examples before each question; default the task's.

    Raises SQFTError for bad data, DependencyError without lm-eval.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    if data_dir is not None and not Path(data_dir).is_dir():
        raise SQFTError(f"--data-dir {data_dir} is not a folder: give the one that holds arc_easy, gsm8k, …")
    metadata: dict[str, Any] = {} if data_dir is None else {"data_dir": str(data_dir)}

    foreign = [name.removeprefix(FOREIGN) for name in names if name.startswith(FOREIGN)]
    loaded: dict[str, Any] = {"tasks": {}}
    if ours := [name for name in names if not name.startswith(FOREIGN)]:
        manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
        _add(loaded, _load(manager, ours))
        for name, task in loaded["tasks"].items():
            _check_answers(name, task)

    if foreign:
        say("reading the tasks of lm-eval")
        manager = TaskManager()
        for name in foreign:
            if name not in manager.task_index:
                close = difflib.get_close_matches(name, manager.all_tasks, n=1)
                hint = f"did you mean {FOREIGN}{close[0]}?" if close else "`lm-eval ls tasks` lists them"
                raise SQFTError(f"--task {FOREIGN}{name} is unknown to lm-evaluation-harness: {hint}")
        _add(loaded, _load(manager, foreign))

    for name, task in loaded["tasks"].items():
        if shots:
            task.set_config("num_fewshot", _possible(name, task, shots))
        elif shots == 0 or task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return loaded


def require_lm_eval() -> None:
    """Raises DependencyError where lm-eval is not installed; else makes it speak of errors only."""
    if importlib.util.find_spec("lm_eval") is None:
        raise DependencyError("lm-eval is not installed, the tasks need it: pip install 'sqft-plugins[eval]'")
    import lm_eval  # noqa: F401 (sets its own level when it is imported)

    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def run_tasks(
    candidate: Candidate,
    loaded: Mapping[str, Any],
    limit: int | None = None,
    seed: int = SEED,
    samples: bool = False,
) -> dict[str, Any]:
    """Scores, as in lm-eval's report.

    loaded: of `load_tasks`.
    limit: only the first questions of each task.
    seed: chooses the examples before a question.
    samples: also `samples`, every question with its answer.

    Raises SQFTError, before the first question is asked, for a question that does not fit the context.
    """
    from lm_eval.evaluator import evaluate

    from sqft_plugins.evaluate.lm import CandidateLM

    model = CandidateLM(candidate)
    for name, task in loaded["tasks"].items():
        task.set_fewshot_seed(seed)
        _check(candidate, name, task, limit)
        task.set_fewshot_seed(seed)  # `evaluate` makes the questions once more: draw the same examples

    report = evaluate(lm=model, task_dict=dict(loaded), limit=limit, log_samples=samples)
    assert report is not None  # None is for the other processes of a distributed run
    kept = {part: dict(report[part]) for part in PARTS if part in report}
    return kept | ({"samples": report["samples"]} if samples else {})


def _check(candidate: Candidate, name: str, task: Any, limit: int | None) -> None:
    """Raises SQFTError for a question that does not fit the context, and for a task that this runtime cannot answer.
    The model is loaded only where an answer is not known."""
    from sqft_plugins.evaluate.lm import question_of

    task.build_all_requests(limit=limit)
    unknown = False
    for request in task.instances:
        question, where = question_of(request), f"task {name} question {request.doc_id + 1}"
        if question is not None and candidate.check_new(where, "fewer --shots, or another task", *question):
            unknown = True

    if unknown and _needs_greedy(task) and not candidate.tells_greedy:
        raise SQFTError(
            f"task {name} asks whether an answer is the greedy one, which the runtime of {candidate.name} does not "
            "tell: evaluate the model folder"
        )


def _check_answers(name: str, task: Any) -> None:
    """Raises SQFTError for a question whose answer is not among its options: lm-eval would count it as wrong, whatever
    the model says."""
    judged_by_itself = callable(task.get_config("process_results")) or not hasattr(task, "multiple_input")
    if task.get_config("output_type") != "multiple_choice" or judged_by_itself:
        return

    for number, doc in enumerate(task.eval_docs, 1):
        options = task.doc_to_choice(doc)
        answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        for one in answer if isinstance(answer, list) else [answer]:
            if not (0 <= int(one) < len(options) if isinstance(one, Integral) else one in options):
                raise SQFTError(
                    f"task {name} question {number}: the answer {one!r} is not among its {len(options)} options (a "
                    "text, or its number from 0): correct or remove it"
                )


def _needs_greedy(task: Any) -> bool:
    kind, metrics = task.get_config("output_type"), getattr(task, "_metric_fn_list", {})
    return (kind == "loglikelihood" and "acc" in metrics) or (kind == "multiple_choice" and "exact_match" in metrics)


def _possible(name: str, task: Any, shots: int) -> int:
    if not (task.has_training_docs() or task.has_validation_docs() or task.get_config("fewshot_split")):
        raise SQFTError(f"--shots {shots} cannot be used with {name}, which has no training questions: leave it out")
    return shots


def _load(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(manager.load(list(names)))
    except SQFTError:
        raise
    except Exception as error:  # a task file, or a data set on the hub, may be wrong in any way
        reason = first_line(error, 200)
        if isinstance(error, StopIteration | IndexError):  # datasets and lm-eval look at the first question
            reason = f"{reason}; has its split no questions?"
        raise SQFTError(f"--task {', '.join(names)} cannot be loaded ({type(error).__name__}: {reason})") from error


def _add(loaded: dict[str, Any], more: Mapping[str, Any]) -> None:
    for part, found in more.items():
        there = loaded.setdefault(part, {})
        if both := sorted(there.keys() & found.keys()):
            raise SQFTError(f"two tasks are called {both[0]}, ours and lm-eval's: evaluate them one after the other")
        there.update(found)
