"""A private copy of each adapter that is being served.

A worker reads an adapter when a request for it is first scheduled, and again whenever it was evicted meanwhile. Had the
folder been replaced or removed by then, the exception would end the whole engine (vLLM 0.32: `EngineCore.step`). So a
request is admitted with the path of a copy that was checked after it was made, and that nobody touches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock

from sqft_plugins.configurations import FOLDER, saved_configurations
from sqft_plugins.errors import CheckpointError, SQFTError
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import CONFIG, WEIGHTS, AdapterFolder, open_adapter
from vllm_ext.private import make_private

VARIABLE = "SQFT_ADAPTER_COPIES"
"""Where the copies go. Default: the system's temporary folder. Workers on other machines must see it too."""
KEPT_SECONDS = 600.0
"""A copy that no name needs any more stays this long, for requests that still wait in the queue."""


class AdapterCopies:
    """Copies by adapter and version. May be asked from several threads."""

    def __init__(self, directory: AdapterDirectory, kept_seconds: float = KEPT_SECONDS):
        self.directory = directory
        self.kept_seconds = kept_seconds
        self._unused_since: dict[Path, float] = {}
        self._lock = Lock()

    @cached_property
    def root(self) -> Path:
        """Made when it is first needed: only the API server needs it. Removed when this process ends. Raises SQFTError
        where it cannot be made."""
        place = os.environ.get(VARIABLE) or None
        try:
            return make_private("sqft-adapters-", place)
        except OSError as error:
            raise SQFTError(
                f"adapters cannot be copied to {place or tempfile.gettempdir()} ({error.strerror}): let {VARIABLE} "
                "name a folder that can be written to"
            ) from error

    def take(self, name: str) -> AdapterFolder:
        """The copy of an adapter as it is now, made if it is not there. Raises SQFTError for a folder that is not
        whole, that is being written to, or that is gone."""
        self.directory.open(name)  # a damaged adapter is refused before anything is copied
        with self._lock:
            return self._take(name)

    def _take(self, name: str) -> AdapterFolder:
        before = self.directory.signature(name)
        version = hashlib.sha256(repr((name, before)).encode()).hexdigest()[:16]  # a link is another name of one file
        target = self.root / version / name  # the folder keeps the adapter's name: messages speak of it
        self._unused_since.pop(target, None)
        if target.is_dir():
            with suppress(SQFTError):
                return open_adapter(target)
            shutil.rmtree(target.parent)  # somebody tidied a part of it away
        source = self.directory.find(name)
        partial = self.root / f".{uuid.uuid4().hex}"
        try:
            (partial / name / FOLDER).mkdir(parents=True)
            for file in (source / CONFIG, source / WEIGHTS):
                shutil.copyfile(file, partial / name / file.name)
            for file in saved_configurations(source).values():
                shutil.copyfile(file, partial / name / FOLDER / file.name)
            if before is None or self.directory.signature(name) != before:
                raise CheckpointError(f"adapter {name} changed while it was read: ask again when it is written")
            open_adapter(partial / name)
            partial.rename(target.parent)
        except FileNotFoundError as error:
            raise CheckpointError(f"adapter {name} was removed while it was read ({error.filename})") from error
        except OSError as error:
            raise CheckpointError(f"adapter {name} cannot be copied to {self.root}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return open_adapter(target)

    def tidy(self, in_use: set[Path]) -> None:
        """Removes copies that were not in use for `kept_seconds`. in_use: folders that `take` gave."""
        now = time.monotonic()
        with self._lock:
            for folder in self.root.glob("*/*"):
                if folder in in_use:
                    self._unused_since.pop(folder, None)
                elif now - self._unused_since.setdefault(folder, now) >= self.kept_seconds:
                    shutil.rmtree(folder.parent, ignore_errors=True)
                    self._unused_since.pop(folder, None)
