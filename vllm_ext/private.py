"""Temporary folders that belong to one running process.

Each holds a lock for as long as its process lives: what tidies /tmp (systemd-tmpfiles) leaves a locked folder alone,
and whoever makes the next one sees which folders nobody holds any more, and removes them: a process that was killed
cannot do so itself.

The lock is flock's, on the folder itself: that is what systemd-tmpfiles looks at, and what filelock, which locks files
of its own, cannot give.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_locks: dict[Path, int] = {}


def make_private(prefix: str, place: str | Path | None = None) -> Path:
    """A new folder `prefix…` in `place` (default: the system's temporary folder), removed when this process ends.
    Folders of that prefix that were left behind go first. Raises OSError where none can be made."""
    parent = Path(place or tempfile.gettempdir())
    remove_abandoned(prefix, parent)
    while True:
        root = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            handle = os.open(root, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
            if root.is_dir():  # else another one took it for abandoned before it was locked
                _locks[root] = handle
                atexit.register(remove_private, root)
                return root
            os.close(handle)


def remove_private(root: Path) -> None:
    """Removes a folder of `make_private` now. Nothing happens where it is gone."""
    shutil.rmtree(root, ignore_errors=True)
    handle = _locks.pop(root, None)
    if handle is not None:
        os.close(handle)


def remove_abandoned(prefix: str, place: Path) -> None:
    """Removes this user's folders `prefix…` in `place` that no process holds."""
    with suppress(OSError):
        for entry in list(os.scandir(place)):
            if entry.name.startswith(prefix):
                _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    with suppress(OSError):  # held, gone, or on a file system without locks
        if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.getuid():
            return
        handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        finally:
            os.close(handle)
