"""What lies beside an output while it is written, and what a killed process leaves of it there.

| beside `NAME` | what it is | after a kill |
|---|---|---|
| `.NAME.XXXXXXXX.partial` | not whole, or being removed | the next that writes `NAME` removes it |
| `.NAME.XXXXXXXX.old` | what was there (no swapping here) | it comes back, unless `NAME` is there |
| `.NAME.sqft-work` | large, only needed on the way | the next removes it |
| `.NAME.sqft-job`, `.NAME.checkpoints` | finished blocks, checkpoints | the same command goes on from there |

A process holds its folders by a lock, which a kill lets go of; nothing that is held is removed. Where the system locks
no folders (Windows) nothing tells the dead from the living, and nothing is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock"
"""In a folder of work beside an output, the file that its process holds."""
DONE = "done"
"""In such a folder: all is made, and what is left is to give the output its name."""
UNHELD = -1
"""In the place of a folder's handle, where the system locks none."""
SCRATCH, JOB, CHECKPOINTS = "sqft-work", "sqft-job", "checkpoints"


def work_folder(path: Path, kind: str) -> Path:
    """The folder of work beside `path`. kind: SCRATCH, JOB or CHECKPOINTS."""
    return path.with_name(f".{path.name}.{kind}")


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which no sweep removes while this process lives. At the end it is removed,
    where it is still there. Raises OSError where it cannot be made."""
    handle = None
    while handle is None:
        folder = _beside(path, "partial")
        folder.mkdir()
        handle = _hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _let_go(handle)


def discard(folder: Path, path: Path) -> None:
    """Removes a folder that belongs to `path`; of one that is removed half, a kill leaves nothing to go on with."""
    doomed = _beside(path, "partial")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(path: Path) -> None:
    """Removes what dead processes left beside `path`, but what the same command goes on with."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    with contextlib.suppress(OSError):  # no folder, or none of ours to look into
        for left in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
            _remove_dead(left, path)


def sweep_finished(path: Path) -> None:
    """Likewise the folders of work whose output `path` has got its name: a kill came before they were removed."""
    for kind in (SCRATCH, JOB, CHECKPOINTS):
        work = work_folder(path, kind)
        with contextlib.suppress(OSError, Timeout):
            names = {entry.name for entry in work.iterdir()}
            if kind == SCRATCH or DONE in names or names <= {LOCK}:
                with FileLock(work / LOCK).acquire(blocking=False):
                    discard(work, path)


def replace(temporary: Path, path: Path) -> None:
    """`temporary` gets the name `path`, in place of what was there; at no moment is there none of the two."""
    if not path.is_dir():
        os.replace(temporary, path)
    elif not _swapped(temporary, path):  # rename cannot replace a folder that is not empty: the old one goes first
        old = _beside(path, "old")
        handle = _hold(path)
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:  # Ctrl-C between the two
            old.rename(path)
            raise
        finally:
            _let_go(handle)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{kind}")


def _hold(folder: Path) -> int | None:
    """Locks a folder → its open handle, None where a sweep was faster and has removed it."""
    if os.name != "posix":
        return UNHELD
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: then no sweep gets one either
        fcntl.flock(handle, fcntl.LOCK_EX)
    if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
        return handle
    os.close(handle)
    return None


def _let_go(handle: int | None) -> None:
    if handle not in (None, UNHELD):
        os.close(handle)


def _remove_dead(left: Path, path: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    handle = os.open(left, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if left.suffix == ".old" and not os.path.lexists(path):
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:  # as version 0.1 left them
            left.unlink()
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):  # a living process holds it
            raise
    finally:
        os.close(handle)


def _swapped(one: Path, other: Path) -> bool:
    """Swaps two names at once → whether the system and the file system can. Raises OSError for another reason."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or a C library without it
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))
