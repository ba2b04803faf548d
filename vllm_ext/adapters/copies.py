"""A private copy of each version of an adapter that is being served.

A worker reads an adapter when a request for it is first scheduled, and again whenever it was evicted meanwhile; the
folder may have been replaced or removed by then. So a request is admitted with the path of a copy that was checked
after it was made, and that nobody touches. It stays as long as anybody holds its `ServedAdapter`: the table of names,
and each request that runs or waits (`VariantRequest`).
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.folder import CONFIG, WEIGHTS
from sqft_plugins.configurations import FOLDER, saved_configurations
from sqft_plugins.errors import CheckpointError, SQFTError
from vllm_ext.adapters.directory import AdapterDirectory, UnknownAdapterError
from vllm_ext.adapters.folder import Records, ServedAdapter, open_adapter, signature
from vllm_ext.private import make_private
from vllm_ext.variables import ADAPTER_COPIES


class BusyError(CheckpointError):
    """An adapter that is being written to."""


class AdapterCopies:
    """Copies by adapter and version. May be asked from several threads."""

    linger_seconds = 10.0
    """A copy that nobody needs any more stays this long: the engine may not know yet that its last request has
    ended."""
    quiet_seconds = 1.0
    """A folder to which nobody has written for so long is taken for whole: `rsync` and `cp` replace file after file."""
    patience_seconds = 3.0
    """A request waits so long for a folder that is being written to."""
    gone_seconds = 1.0
    """An adapter that was there is removed when it is gone for so long; until then it is being swapped for another."""

    def __init__(self, directory: AdapterDirectory):
        self.directory = directory
        self._copies: weakref.WeakValueDictionary[Path, ServedAdapter] = weakref.WeakValueDictionary()
        self._known: set[str] = set()  # adapters that were there
        self._busy_until: dict[str, float] = {}
        self._unneeded: queue.SimpleQueue[tuple[float, Path]] = queue.SimpleQueue()
        self._lock = threading.RLock()

    @cached_property
    def root(self) -> Path:
        """Made when it is first needed: only the API server needs it. Removed when this process ends. Raises SQFTError
        where it cannot be made."""
        place = os.environ.get(ADAPTER_COPIES) or None
        try:
            root = make_private("sqft-adapters-", place)
        except OSError as error:
            raise SQFTError(
                f"adapters cannot be copied to {place or tempfile.gettempdir()} ({error.strerror}): let "
                f"{ADAPTER_COPIES} name a folder that can be written to"
            ) from error
        threading.Thread(target=self._tidy, name="sqft-copies", daemon=True).start()
        return root

    def take(self, name: str, served: bool = False) -> tuple[ServedAdapter, Records]:
        """The copy of an adapter as it is now, made if it is not there, and the records of the folder that holds it.

        A folder that is being written to is waited for, and so is one that is gone for a moment, as while two are
        swapped. served: an older version can answer meanwhile; else what is whole is taken at last, written to or not.
        Raises BusyError, UnknownAdapterError, or another SQFTError for a folder that is not whole.
        """
        begun = time.monotonic()
        patience = 0.0 if served and begun < self._busy_until.get(name, 0.0) else self.patience_seconds
        seen, since, gone_since = self.directory.records(name), begun, None

        while True:
            now = time.monotonic()
            late = now - begun >= patience
            try:
                if self._is_quiet(seen, now - since) or (late and not served):
                    taken = self._take(name)
                    self._known.add(name)
                    self._busy_until.pop(name, None)
                    return taken
                gone_since = None
                if late:
                    self._busy_until[name] = now + self.patience_seconds
                    raise BusyError(f"adapter {name} is being written to")
            except UnknownAdapterError as error:
                gone_since = gone_since or now
                if name in self._known and late and seen is not None:
                    raise CheckpointError(str(error)) from error  # its folder is there, so nobody removed it
                if name not in self._known or now - gone_since >= self.gone_seconds:
                    self._known.discard(name)
                    raise
            except BusyError:
                if late:
                    raise

            # what has changed meanwhile
            time.sleep(0.05)
            records = self.directory.records(name)
            if records != seen:
                seen, since = records, time.monotonic()

    def _is_quiet(self, records: Records | None, observed: float) -> bool:
        """Whether nobody has written to a folder for `quiet_seconds`, by its records, which have the clock of its file
        system, or by what was `observed`: that clock may be another one. An adapter that is gone is quiet."""
        if records is None or observed >= self.quiet_seconds:
            return True
        written = max(ctime or mtime for *_, mtime, ctime in records) / 1e9
        return time.time() - written >= self.quiet_seconds

    def _take(self, name: str) -> tuple[ServedAdapter, Records]:
        before = self.directory.records(name)
        try:
            copy = self._copy(name)
        except BusyError:
            raise
        except SQFTError as error:
            if self.directory.records(name) != before:
                raise BusyError(f"adapter {name} changed while it was read: {error}") from error
            raise
        if before is None or self.directory.records(name) != before:
            raise BusyError(f"adapter {name} changed while it was read: ask again when it is written")
        return copy, before

    def _copy(self, name: str) -> ServedAdapter:
        self.directory.open(name)  # a damaged adapter is refused before anything is copied
        source = self.directory.find(name)
        now = signature(source)
        if now is None:
            raise BusyError(f"adapter {name} was removed while it was read")

        # the folder keeps the adapter's name, of which messages speak; a link is another name of one version
        target = self.root / f"{now}-{name}" / name
        with self._lock:
            known = self._copies.get(target)
            if known is not None and known.is_whole:
                return known

            # made anew, unless one that nobody held was not removed yet
            if signature(target) != now:
                shutil.rmtree(target.parent, ignore_errors=True)  # somebody tidied a part of it away
                self._write(name, source, target)
            if signature(target) != now:
                shutil.rmtree(target.parent, ignore_errors=True)
                raise BusyError(f"adapter {name} changed while it was copied")

            copy = self._copies[target] = open_adapter(target)
            copy.source = source
            weakref.finalize(copy, self._is_unneeded, target).atexit = False
            return copy

    def _write(self, name: str, source: Path, target: Path) -> None:
        partial = self.root / f".{uuid.uuid4().hex}"
        try:
            (partial / name / FOLDER).mkdir(parents=True)
            for file in (source / CONFIG, source / WEIGHTS):
                shutil.copyfile(file, partial / name / file.name)
            for file in saved_configurations(source).values():
                shutil.copyfile(file, partial / name / FOLDER / file.name)
            open_adapter(partial / name)  # what is damaged since is removed, not put in place
            partial.rename(target.parent)
        except FileNotFoundError as error:
            raise BusyError(f"adapter {name} was removed while it was read ({error.filename})") from error
        except OSError as error:
            raise CheckpointError(f"adapter {name} cannot be copied to {self.root}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _is_unneeded(self, path: Path) -> None:
        """Runs wherever the last reference goes, perhaps while the lock is held: only notes it."""
        self._unneeded.put((time.monotonic() + self.linger_seconds, path))

    def _tidy(self) -> None:
        while True:
            due, path = self._unneeded.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with self._lock:
                if path not in self._copies:
                    shutil.rmtree(path.parent, ignore_errors=True)


def hold(request: Any, copy: ServedAdapter) -> None:
    """Keeps the copy for as long as the request exists in this process."""
    weakref.finalize(request, lambda _: None, copy).atexit = False
