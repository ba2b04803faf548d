"""Outputs that are whole or not there: written beside the target, synced, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sqft_plugins.checkpoint.leftovers import (
    LOCK,
    SCRATCH,
    discard,
    partial_folder,
    replace,
    sweep,
    sweep_finished,
    work_folder,
)
from sqft_plugins.errors import DiskFullError, OutputExistsError, SQFTError, system_error


def check_output(path: str | Path, overwrite: bool = False, argument: str = "--out") -> Path:
    """The output path, or OutputExistsError before any work. Also refuses a parent that is a file, and to replace a
    folder that the user stands in, or the home folder. What a process that was killed left beside it is removed."""
    path = Path(path)
    sweep(path.resolve())
    if path.exists() and not overwrite:
        sweep_finished(path.resolve())
        raise OutputExistsError(f"{argument} {path} exists: choose another path, or replace it with --overwrite")
    real = path.resolve()
    if path.is_dir() and (Path.cwd().is_relative_to(real) or Path.home().is_relative_to(real)):
        raise SQFTError(f"{argument} {path} is the current or the home folder, or holds it: choose a folder of its own")
    check_writable(path, argument)
    return path


def check_writable(path: str | Path, argument: str = "--out") -> None:
    """Raises SQFTError where nothing can be written at `path`: the nearest folder above it that is there takes no
    files."""
    parent = Path(path).resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not _takes_files(parent):
        raise SQFTError(f"{argument} {path} cannot be written: {parent} is not a writable folder, choose another path")


def check_output_folder(path: str | Path, overwrite: bool = False, argument: str = "--out") -> Path:
    """`check_output` of a folder: refuses a file, too."""
    found = check_output(path, overwrite, argument)
    if found.exists() and not found.is_dir():
        raise SQFTError(f"{argument} {path} is a file, a folder goes there: choose another path")
    return found


def check_output_file(path: str | Path, overwrite: bool = False, argument: str = "--out") -> Path:
    """`check_output` of a file: refuses a folder, too."""
    found = check_output(path, overwrite, argument)
    if found.is_dir():
        raise SQFTError(f"{argument} {path} is a folder, a file goes there: choose another path")
    return found


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in it, by making one without a name: of root's rights os.access says nothing, and
    /proc takes no files from anyone."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)  # a full disk has a message of its own, when it matters


@contextmanager
def write_folder(path: str | Path, overwrite: bool = False, argument: str = "--out") -> Iterator[Path]:
    """Yields an empty folder beside `path`; on success it becomes `path`, on any error or Ctrl-C it is removed."""
    # a link stays, what it points to is replaced
    shown, path = path, check_output_folder(path, overwrite, argument).resolve()
    with _beside(path, shown, argument) as temporary:
        yield temporary
        replace_folder(temporary, path)


def replace_folder(folder: Path, path: Path) -> None:
    """The whole, synced `folder` becomes `path`, in place of what was there."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)
    replace(folder, path)


@contextmanager
def write_file(path: str | Path, overwrite: bool = False, argument: str = "--out") -> Iterator[Path]:
    """Yields a file name in a folder beside `path` to write to; on success it becomes `path`, on any error it is
    removed."""
    shown, path = path, check_output_file(path, overwrite, argument).resolve()
    with _beside(path, shown, argument) as folder:
        yield folder / path.name
        _sync(folder / path.name)
        replace(folder / path.name, path)


@contextmanager
def _beside(path: Path, shown: str | Path, argument: str) -> Iterator[Path]:
    """`partial_folder`, with the messages of an output."""
    make_folder(path.parent, shown, argument)
    with translate_full_disk(path, argument), partial_folder(path) as folder:
        yield folder


def make_folder(folder: Path, shown: str | Path, argument: str) -> None:
    """With its parents. Raises SQFTError, which names `argument` and `shown`, where the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SQFTError(
            f"{argument} {shown} cannot be written ({error.strerror or error}): choose another path"
        ) from error


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def scratch_folder(path: str | Path, argument: str = "--out") -> Iterator[Path]:
    """Yields an empty folder beside `path` for what is large and only needed on the way to it; it is removed at the
    end. What a process left there that was killed is removed by the next that writes `path`.

    Raises SQFTError where another process is at it.
    """
    shown, path = path, Path(path).resolve()
    work = work_folder(path, SCRATCH)
    make_folder(work, shown, argument)
    with held_alone(work / LOCK, f"{argument} {shown}", "written"):
        empty_folder(work)
        try:
            with translate_full_disk(path, argument):
                yield work
        finally:
            discard(work, path)


def empty_folder(work: Path) -> None:
    """Removes what is in a folder but the file `LOCK`, which is held: it must stay the same."""
    for entry in work.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def held_alone(lock: Path, what: str, doing: str) -> Iterator[None]:
    """Holds `lock`, a file that stays, so that one process at a time does something. A kill lets go of it.

    Raises SQFTError at once where another process holds the file: "`what` is being `doing` by another process".
    """
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise SQFTError(f"{what} is being {doing} by another process: wait for it, or choose another path") from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def translate_full_disk(path: Path, argument: str, hint: str = "") -> Iterator[None]:
    """A full disk becomes a DiskFullError; `hint` is added to its text."""
    try:
        yield
    except Exception as error:
        if system_error(error) in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.absolute().parent).free
            raise DiskFullError(
                f"{argument} {path}: the disk is full ({free >> 20} MiB free): free some space or choose another path"
                + (f"; {hint}" if hint else "")
            ) from error
        raise
