"""What `sqft` leaves of a failure that nobody foresaw: one file that a user can send, and the line that names it.

In the file are versions, the machine, the command and the traceback. No data: of a message there is the first line, of
a variable nothing, of an argument with blanks (a prompt, a header) its length; and no secrets.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement

from sqft_plugins._version import VERSION
from sqft_plugins.errors import first_line
from sqft_plugins.hiding import hide, hide_in_text
from sqft_plugins.variables import STATE

FAILED = 70
"""The exit code, EX_SOFTWARE of sysexits.h: no other failure has it."""
KEPT = 20
"""Reports in the folder; older ones go."""


def report_failure(error: BaseException, arguments: Sequence[str]) -> str:
    """Writes the report → the line for the user. Where no file can be written it goes to stderr."""
    what = hide_in_text(f"{type(error).__name__}: {first_line(error)}", os.environ)
    text = described(error, arguments)
    for folder in (state_folder() / "failures", Path()):
        with contextlib.suppress(OSError):
            file = _write(folder, text)
            return f"{what}: this should not happen; please report it with {file} (no data, no keys; read it first)"
    print(text, file=sys.stderr)
    return f"{what}: this should not happen; please report it with the text above (no data, no keys; read it first)"


def described(error: BaseException, arguments: Sequence[str]) -> str:
    """The report."""
    from sqft_plugins.hardware import machine_facts

    lines = ["sqft failure report", f"time: {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", f"sqft-plugins: {VERSION}"]
    lines += [f"{name}: {version}" for name, version in _versions().items()]
    try:
        lines += [f"{name}: {found}" for name, found in machine_facts().items()]
    except Exception as unknown:  # whatever is broken here may be what failed
        lines.append(f"machine: unknown ({type(unknown).__name__})")
    lines += [f"command: sqft {' '.join(_shown(hide(arguments)))}", "", *_traceback(error)]
    text = hide_in_text("\n".join(lines), os.environ)
    home = str(Path.home())
    return (text.replace(home, "~") if len(home) > 1 else text) + "\n"


def state_folder() -> Path:
    """Where this program keeps what is of this machine alone."""
    return Path(os.environ.get(STATE) or Path.home() / ".local" / "state") / "sqft"


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"sqft-failure-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text)
    if folder != Path():  # of the folder that the user stands in, nothing is removed
        for old in sorted(folder.glob("sqft-failure-*.txt"))[:-KEPT]:
            old.unlink(missing_ok=True)
    return file.resolve()


def _versions() -> dict[str, str]:
    """Of Python and of every package that this one asks for and that is there."""
    found = {"python": sys.version.split()[0]}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for name in sorted({Requirement(line).name for line in importlib.metadata.requires("sqft-plugins") or []}):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def _shown(words: Sequence[str]) -> Iterator[str]:
    """The words; in place of one with blanks, which is a text more often than a path, how long it is."""
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        yield f"{option}{equals}<{len(value)} characters>" if any(map(str.isspace, value)) else word


def _traceback(error: BaseException) -> Iterator[str]:
    """Python's, the cause first, each message cut to its first line: the rest may be data, such as pydantic's
    input."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _traceback(before)
        yield "which led to"
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__))
    yield from (line.rstrip("\n") for line in frames.format())
    yield f"{type(error).__name__}: {first_line(error)}"
