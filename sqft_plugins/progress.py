"""Progress with an ETA: a bar on a terminal, plain lines elsewhere. It goes to stderr; stdout is for results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, Self, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


class _Stderr:
    """stderr, whatever it is at the moment. A terminal that was closed, or a pipe that nobody reads any more, takes no
    lines and ends no work: from then on they go to nowhere."""

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except OSError:
            drop(sys.stderr)
            return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except OSError:
            drop(sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def drop(*streams: TextIO) -> None:
    """What is written to the streams, and what still waits in their buffers, goes to nowhere; at the end of Python,
    too, where it would be a traceback."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream.fileno())


stderr = cast(TextIO, _Stderr())
console = Console(file=stderr)
PLAIN_SECONDS = 15.0
"""Seconds between two plain lines."""


def say(text: str, style: str | None = None) -> None:
    """One line of what is going on, as it stands: `[plot]` in it is text, not rich's markup. style: rich's, "bold"."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, showing `what`, how many of how many, and the time that is left."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if console.is_terminal:
        with _bar() as bar:
            yield from bar.track(items, total=total, description=what)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS and total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {now - start:.0f} s, {left:.0f} s left", file=stderr, flush=True)


def _bar(*more: TextColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
        console=console,
        transient=True,
    )


class Steps:
    """Progress through steps that have something to tell: on a terminal a bar whose text is that of the last step,
    elsewhere one line a step with the time that is left."""

    def __init__(self, what: str, total: int, done: int = 0):
        self._what, self._total, self._first, self._done = what, total, done, done

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = _bar(TextColumn("{task.fields[text]}"))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, completed=self._done, text="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, text: str) -> None:
        """What is going on within a step; shown on a terminal only."""
        if self._bar is not None:
            self._bar.update(self._task, text=text)

    def step(self, text: str = "") -> None:
        """One more step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=text)
            return
        spent = time.monotonic() - self._start
        left = spent / (self._done - self._first) * (self._total - self._done)
        line = f"{self._what}: {self._done}/{self._total}, {text}{', ' if text else ''}{left:.0f} s left"
        print(line, file=stderr, flush=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences transformers' own bars and notes where we show the progress ourselves; downloads keep their bars."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if bars:
        enable_progress_bars()  # transformers switches off the hub's bars with its own
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
