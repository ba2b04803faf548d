"""Scores of a loaded model: accuracy on a task, perplexity of a text. The same code for every runtime."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.model_files import reader_of
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Engine, Item, Session, Task
from sqft_plugins.progress import track

MAX_NEW_TOKENS = 12
LARGEST = 700.0
"""Nats a token whose exp is still a number."""
WINDOW = 256
"""Tokens of one perplexity window."""
TOKENS = 8 * WINDOW
"""Tokens of a text that the perplexity goes over."""
BROKEN = "look for broken tensors with `sqft inspect`, or give --dtype float32"
"""The remedy where a model computes NaN: argmax and mean would make a score of it."""


@dataclass(frozen=True)
class Accuracy:
    """correct of total, with the standard error of the fraction. completions: what the model wrote, in order."""

    correct: int
    total: int
    completions: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def stderr(self) -> float:
        """Binomial, sqrt(p (1 - p) / (n - 1)), as lm-evaluation-harness computes it."""
        return math.sqrt(self.value * (1 - self.value) / max(self.total - 1, 1))


def open_session(path: str | Path, **options: Any) -> Session:
    """Loads `path` with the first runtime that opens it. Raises CheckpointError where there is none."""
    path = Path(path)
    engine = engine_of(path, adapted="adapter" in options)
    check_options(engine, options)
    return engine.open(path, **options)


def check_options(engine: Engine, options: Iterable[str]) -> None:
    """Raises SQFTError for an option that this runtime does not have."""
    parameters = inspect.signature(engine.open).parameters.values()
    known = {parameter.name for parameter in parameters}
    unknown = sorted(set(options) - known)
    if "accelerate" not in unknown and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return  # it looks at them itself
    if unknown:
        raise SQFTError(f"{engine.name} does not take {', '.join(unknown)}: leave it out")


def engine_of(path: Path, adapted: bool = False) -> Engine:
    """The first runtime that opens `path`; nothing is loaded. adapted: with an adapter folder beside it, which
    transformers alone loads, also over a model that is a file. Raises CheckpointError where there is none."""
    if not path.exists():
        raise CheckpointError(f"model {path} does not exist: give a model folder or a .gguf file")
    engines = cast(dict[str, Engine], get_manager().collect("sqft_engines"))
    if adapted and reader_of(path) is not None:
        return engines["transformers"]
    for engine in engines.values():
        if engine.opens(path):
            return engine
    raise CheckpointError(
        f"model {path} is opened by none of {', '.join(sorted(engines))}: give a model folder or a .gguf file"
    )


class Writer(Protocol):
    """What `accuracy` needs of a Session."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> Iterator[str]: ...


def accuracy(session: Writer, task: Task, what: str = "questions", limit: int | None = None) -> Accuracy:
    """The fraction of the task's items that greedy decoding answers right. what: they are called while they are
    counted. limit: only the first items."""
    items: Sequence[Item] = task.items()[:limit]
    if not items:
        raise SQFTError(f"task {task.name} has no questions: raise --limit")
    answers = session.generate([item.prompt for item in items], MAX_NEW_TOKENS)
    completions = tuple(track(answers, what, total=len(items)))
    correct = sum(task.is_correct(item, text) for item, text in zip(items, completions, strict=True))
    return Accuracy(correct, len(items), completions)


@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood) of `tokens` tokens, with its standard error over the windows of the text (NaN
    for a single one)."""

    value: float
    stderr: float
    tokens: int


def perplexity(session: Session, text: str, max_tokens: int = TOKENS) -> float:
    """The value of `perplexity_of`."""
    return perplexity_of(session, text, max_tokens).value


def perplexity_of(session: Session, text: str, max_tokens: int = TOKENS) -> Perplexity:
    """exp(mean negative log-likelihood) of the first `max_tokens` tokens of `text`, in windows of 256 tokens that each
    begin as a text of their own does (with `<bos>` where the model has one)."""
    tokens = session.tokenize(text)
    start = session.tokenize("")
    body = tokens[len(start) :][:max_tokens]
    windows = [body[i : i + WINDOW] for i in range(0, len(body) - 1, WINDOW)]
    if not windows:
        raise SQFTError(f"the text has {len(body)} tokens: give a longer one with --text")

    sums, counts = [], []
    for window in track(windows, "perplexity"):
        scores = session.logprobs([*start, *window])[max(len(start) - 1, 0) :]
        sums.append(-float(scores.double().sum()))
        counts.append(len(scores))

    mean = math.fsum(sums) / sum(counts)
    if not mean < LARGEST:
        raise SQFTError(f"the text has a mean loss of {mean:.4g}, which makes no perplexity: {BROKEN}")
    return Perplexity(math.exp(mean), math.exp(mean) * _ratio_stderr(sums, counts), sum(counts))


def _ratio_stderr(sums: Sequence[float], counts: Sequence[int]) -> float:
    """Standard error of sum(sums) / sum(counts), a window being one draw; exp of it follows by the delta method."""
    windows, total = len(sums), sum(counts)
    if windows < 2:
        return math.nan
    mean = math.fsum(sums) / total
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(sums, counts, strict=True))
    return math.sqrt(squares * windows / (windows - 1)) / total
