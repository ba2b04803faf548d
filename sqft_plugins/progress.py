"""Progress with an ETA: a bar on a terminal, plain lines elsewhere. It goes to stderr; stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True)
PLAIN_SECONDS = 15.0
"""Seconds between two plain lines."""


def say(text: str) -> None:
    """One line of what is going on."""
    console.print(text, highlight=False, soft_wrap=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, showing `what`, how many of how many, and the time that is left."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS and total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {now - start:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences transformers' own bars and notes where we show the progress ourselves; downloads keep their bars."""
    from huggingface_hub.utils import enable_progress_bars
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
