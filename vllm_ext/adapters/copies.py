"""A private copy of each adapter that is being served.

A worker reads an adapter when a request for it is first scheduled, and again whenever it was evicted meanwhile. Had the
folder been replaced or removed by then, the exception would end the whole engine (vLLM 0.32: `EngineCore.step`). So a
request is admitted with the path of a copy that was checked after it was made, and that nobody touches.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from functools import cached_property
from pathlib import Path

from sqft_plugins.configurations import FOLDER, saved_configurations
from sqft_plugins.errors import CheckpointError
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import CONFIG, WEIGHTS, AdapterFolder, open_adapter

VARIABLE = "SQFT_ADAPTER_COPIES"
"""Where the copies go. Default: the system's temporary folder. Workers on other machines must see it too."""
KEPT_SECONDS = 600.0
"""A copy that no name needs any more stays this long, for requests that still wait in the queue."""


class AdapterCopies:
    """Copies by adapter and version. Not thread-safe: the API server calls it under a lock."""

    def __init__(self, directory: AdapterDirectory, kept_seconds: float = KEPT_SECONDS):
        self.directory = directory
        self.kept_seconds = kept_seconds
        self._unused_since: dict[Path, float] = {}

    @cached_property
    def root(self) -> Path:
        """Made when it is first needed: only the API server needs it. Removed when this process ends."""
        root = Path(tempfile.mkdtemp(prefix="sqft-adapters-", dir=os.environ.get(VARIABLE) or None))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        return root

    def take(self, name: str) -> AdapterFolder:
        """The copy of an adapter as it is now, made if it is not there. Raises SQFTError for a folder that is not
        whole, that is being written to, or that is gone."""
        self.directory.open(name)  # a damaged adapter is refused before anything is copied
        before = self.directory.signature(name)
        version = hashlib.sha256(repr(before).encode()).hexdigest()[:16]
        target = self.root / version / name  # the folder keeps the adapter's name: messages speak of it
        self._unused_since.pop(target, None)
        if target.is_dir():
            return open_adapter(target)
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
        for folder in self.root.glob("*/*"):
            if folder in in_use or folder.parent.name.startswith("."):
                self._unused_since.pop(folder, None)
            elif now - self._unused_since.setdefault(folder, now) >= self.kept_seconds:
                shutil.rmtree(folder.parent, ignore_errors=True)
                self._unused_since.pop(folder, None)
