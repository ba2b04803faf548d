"""How a command ends before it is done: by SIGTERM and by a closed terminal (SIGHUP) as by Ctrl-C, so that what is
unfinished is removed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""


class Ended(BaseException):
    """A signal asked the command to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ending_in_order() -> Iterator[None]:
    """While it is entered, those SIGNALS that would end this process raise Ended. Ignored ones stay ignored (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != mine:  # a forked worker has nothing of ours to clean up
            die_of(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # a second one must not end the cleaning up
        raise Ended(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def die_of(number: int) -> None:
    """Ends this process as if the signal had not been caught: whoever waits for it sees why it ended."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
