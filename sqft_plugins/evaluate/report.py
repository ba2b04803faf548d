"""`sqft eval` as a function: any of our artefacts on any tasks, each number with its standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import harness
from sqft_plugins.evaluate.accelerated import check_packable
from sqft_plugins.evaluate.answers import Answers, cache_folder
from sqft_plugins.evaluate.candidate import Candidate
from sqft_plugins.evaluate.identity import identity, rank_in_force
from sqft_plugins.evaluate.run import MAX_NEW_TOKENS, TOKENS, Accuracy, accuracy, check_options, engine_of, open_session
from sqft_plugins.evaluate.server import ServerSession
from sqft_plugins.evaluate.transformers_engine import BATCH
from sqft_plugins.hardware import fast_device, parse_dtype
from sqft_plugins.kernels.library import library
from sqft_plugins.plugins.protocols import Session, Task
from sqft_plugins.progress import say


def evaluate_model(
    candidate: Candidate,
    tasks: Sequence[str | Task],
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = harness.SEED,
    text: str | None = None,
    samples: bool = False,
) -> dict[str, Any]:
    """Scores of a candidate (`open_candidate`), in the layout of lm-evaluation-harness: `results` has for each task
    `METRIC,FILTER` and `METRIC_stderr,FILTER`.

    tasks: names of ours, `lm-eval:NAME`, task files, and objects of the protocol Task.
    data_dir: the local data of our tasks; default the hub.
    limit: only the first questions of each task.
    shots: examples before each question; default the task's.
    seed: chooses the examples.
    text: measure its perplexity, too.
    samples: also report every question with its answer.

    Raises SQFTError, before the first question is asked where the mistake can be seen by then.
    """
    started, asked = time.monotonic(), candidate.asked
    named = [task for task in tasks if isinstance(task, str)]
    objects = [task for task in tasks if not isinstance(task, str)]

    # everything that can be refused
    harness.check_names(named)
    for task in objects:
        if not task.items()[:1]:
            raise SQFTError(f"task {task.name} has no questions: give it some")
    loaded = harness.load_tasks(named, data_dir, shots) if named else {"tasks": {}}
    _check_distinct([*loaded["tasks"], *(task.name for task in objects), *(["perplexity"] if text is not None else [])])
    for task in objects:
        for number, item in enumerate(task.items()[:limit], 1):
            where = f"task {task.name} question {number}"
            candidate.check_new(where, "shorten it", "completion", item.prompt, MAX_NEW_TOKENS, [])

    # lm-eval's tasks, those of the protocol Task, the text
    report: dict[str, Any] = {part: {} for part in harness.PARTS}
    if named:
        report |= harness.run_tasks(candidate, loaded, limit, seed, samples)
    for task in objects:
        score = accuracy(candidate, task, task.name, limit)
        _add(report, task.name, "acc", score.value, score.stderr, True)
        report["n-samples"][task.name] = {"original": len(task.items()), "effective": score.total}
        if samples:
            report.setdefault("samples", {})[task.name] = _samples(task, score)
    if text is not None:
        found = candidate.perplexity(text, TOKENS)
        _add(report, "perplexity", "perplexity", found.value, found.stderr, False)
        report["n-samples"]["perplexity"] = {"tokens": found.tokens}

    settings = {"limit": limit, "shots": shots, "seed": seed, "batch_size": candidate.batch_size}
    return {
        **report,
        **settings,
        "runtime": dict(candidate.runtime),
        "asked": candidate.asked - asked,
        "seconds": round(time.monotonic() - started, 1),
    }


def open_candidate(
    model: str | Path | None,
    adapter: str | Path | None = None,
    rank: Any = "heuristic",
    *,
    server: str | None = None,
    served: str | None = None,
    cache: bool = True,
    batch_size: int = BATCH,
    **options: Any,
) -> Candidate:
    """A candidate, loaded when it is first asked something new.

    model: a model folder or a GGUF file.
    adapter, rank: an adapter folder over the model, and the rank to use it at.
    server, served: in place of a model the address of a vLLM server, and the name of a model that it offers.
    cache: use what the model answered before; never for a server, whose model may change.
    batch_size: prompts, or options of answers, that go through together.
    options: of the runtime, such as dtype, or accelerate=True for the packed form of INT4 layers.

    Raises SQFTError for options that the runtime does not have, and for what is not there.
    """
    options = {name: value for name, value in options.items() if not (name == "accelerate" and not value)}

    if server is not None:
        if options:
            raise SQFTError(f"--{min(options)} is not for a --server, it has its own: leave it out")
        session = ServerSession(server, served)
        say(f"{server}: answers of a server are not kept, its model may change")
        return Candidate(f"{session.model} at {server}", lambda: session, None, batch_size, {"runtime": "server"})

    if model is None:
        raise SQFTError("no model: give a folder or a .gguf file, or --server URL")
    path, grid = Path(model), None
    engine = engine_of(path, adapted=adapter is not None)
    check_options(engine, options)

    over: dict[str, Any] = {}
    if adapter is not None:
        saved = SavedAdapter(adapter)
        over = {"adapter": saved.path, "rank": rank_in_force(saved, rank)}
        grid = saved.grid_over(path)

    # what decides the answers, beside model, adapter and rank
    settings = {"runtime": engine.name, **options}
    if engine.name == "transformers":
        settings["dtype"] = str(parse_dtype(options.get("dtype", "fast")))  # "fast" is another one on another machine
        settings["device"] = fast_device().type
        if "accelerate" in options:
            check_packable(path, grid)
            settings["kernel"] = library().path
    answers = Answers(cache_folder(), identity(path, settings, grid=grid, **over)) if cache else None

    def load() -> Session:
        say(f"loading {path}")
        return open_session(path, **options, **over)

    return Candidate(str(model), load, answers, batch_size, settings)


def _check_distinct(names: Sequence[str]) -> None:
    """Raises SQFTError where one task's numbers would take the place of another's."""
    for name in names:
        if names.count(name) > 1:
            raise SQFTError(f"two tasks are called {name}: rename the --data file, or leave one out")


def _samples(task: Task, score: Accuracy) -> list[dict[str, Any]]:
    """Every question of a task of the protocol, as lm-eval logs those of its own."""
    rows = []
    for place, (item, text) in enumerate(zip(task.items()[: score.total], score.completions, strict=True)):
        right = float(task.is_correct(item, text))
        doc = {"prompt": item.prompt, "answer": item.answer}
        rows.append({"doc_id": place, "doc": doc, "target": item.answer, "filtered_resps": [text], "acc": right})
    return rows


def _add(report: dict[str, Any], task: str, metric: str, value: float, stderr: float, higher: bool) -> None:
    error = "N/A" if math.isnan(stderr) else stderr
    report["results"][task] = {"alias": task, f"{metric},none": value, f"{metric}_stderr,none": error}
    report["higher_is_better"][task] = {metric: higher}
