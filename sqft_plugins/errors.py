"""The errors a user can cause, each one line: the argument, the value, the remedy."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SQFTError(ValueError):
    """Base of every error of this project. The command line prints it as one line and exits with code 2."""


class CheckpointError(SQFTError):
    """A model or adapter folder is missing, damaged, or of a version this release does not read."""


class MismatchError(SQFTError):
    """An adapter, a mask or a stamp belongs to another base model."""


class OutputExistsError(SQFTError):
    """The output is already there and `overwrite` was not asked for."""


class DiskFullError(SQFTError):
    """There is no room for the output."""


class GridError(SQFTError):
    """A weight, a scale or a group size does not fit the INT4 grid."""


class KernelError(SQFTError):
    """A packed weight is damaged, or a sparse INT4 kernel cannot do what was asked of it."""


class DependencyError(SQFTError):
    """An optional package is missing or of a version outside the supported range."""


@contextmanager
def within(place: str) -> Iterator[None]:
    """Puts `place` before the message of an SQFTError that the block raises: the step, the file, the option."""
    try:
        yield
    except SQFTError as error:
        raise type(error)(f"{place}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message for an unknown `name`: the nearest known one, then all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(options) or 'none'}"


def first_line(error: BaseException, length: int = 160) -> str:
    """The first line of another library's error, cut to `length`, to stand in one of ours; its type where it is
    empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:length] if lines else type(error).__name__


def system_error(error: BaseException) -> int | None:
    """The number of the system's error (errno) that an exception tells of: an OSError's own, or the one in the text of
    a library in Rust, such as safetensors; of `torch.save`, which tells only that less was written than it gave, that
    of a full disk; None for another exception."""
    if isinstance(error, OSError):
        return error.errno
    if "inline_container.cc" in str(error) and "unexpected pos" in str(error):
        return errno.ENOSPC
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
