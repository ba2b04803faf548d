"""What one directory of adapters serves. Nothing outside it is opened, whatever a name or a link says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqft_plugins.configurations import FOLDER, saved_configurations
from sqft_plugins.errors import SQFTError, nearest
from vllm_ext.adapters.folder import CONFIG, WEIGHTS, AdapterFolder, open_adapter
from vllm_ext.adapters.names import AdapterName, AdapterNameError, parse_name

VARIABLE = "SQFT_ADAPTERS_DIR"
Signature = tuple[Any, ...]
"""Changes when a file of an adapter folder is replaced or written to."""


class UnknownAdapterError(SQFTError):
    """A well-formed name of no adapter in the directory."""


class AdapterDirectory:
    """The adapter folders right below `root`; read anew at each question, so adapters come and go while a server runs.

    A folder counts if it has an adapter_config.json and its name can be asked for (names.py). Links are followed only
    to what lies inside `root`.
    """

    def __init__(self, root: str | Path):
        self.given = Path(root)
        self.root = self.given.resolve()
        if not self.root.is_dir():
            raise SQFTError(f"adapters directory {root} is not a folder: make it, or set {VARIABLE} to one that is")
        self._opened: dict[str, tuple[Signature, AdapterFolder | SQFTError]] = {}

    def __iter__(self) -> Iterator[str]:
        """The names of the adapter folders, in order; whether they are whole is not looked at."""
        for entry in sorted(os.listdir(self.root)):
            try:
                if parse_name(entry).rank is None:
                    self.find(entry)
                    yield entry
            except SQFTError:
                continue

    def find(self, name: str) -> Path:
        """The folder of an adapter. Raises UnknownAdapterError, also where its files lie outside of the directory."""
        if parse_name(name).rank is not None:
            raise AdapterNameError(f"adapter name {name!r} holds an @")
        folder = self._inside(self.root / name)
        if folder is None or not (folder / CONFIG).is_file():
            raise UnknownAdapterError(f"adapter {name!r} is not in {self.given}: {nearest(name, self._names())}")
        for file in (folder / CONFIG, folder / WEIGHTS, folder / FOLDER, *saved_configurations(folder).values()):
            if file.exists() and self._inside(file) is None:
                raise UnknownAdapterError(f"adapter {name!r}: {file.name} is a link out of {self.given}, copy it there")
        return folder

    def signature(self, name: str) -> Signature | None:
        """None where the adapter is gone. Costs a few microseconds: it is asked for at every request."""
        try:
            folder = self.root / name
            return tuple(_file_signature(folder / file) for file in (CONFIG, WEIGHTS)) + _configurations(folder)
        except OSError:
            return None

    def open(self, name: str) -> AdapterFolder:
        """The adapter, checked; the checks run again only when a file has changed. Raises as `find` and `open_adapter`
        do."""
        folder = self.find(name)
        signature = self.signature(name)
        known = self._opened.get(name)
        if known is None or known[0] != signature or signature is None:
            self._opened = {other: kept for other, kept in self._opened.items() if (self.root / other).is_dir()}
            try:
                known = (signature or (), open_adapter(folder))
            except SQFTError as error:
                known = (signature or (), error)
            self._opened[name] = known
        if isinstance(known[1], SQFTError):
            raise known[1]
        return known[1]

    def names(self) -> list[tuple[str, AdapterFolder]]:
        """(name, folder) of every variant that can be asked for. Adapters that are not whole are left out."""
        found = []
        for name in self:
            try:
                folder = self.open(name)
            except SQFTError:
                continue
            found += [(str(AdapterName(name, rank)), folder) for rank in folder.variants]
        return found

    def _inside(self, path: Path) -> Path | None:
        """The path with links resolved, None where it is not there or not below the root."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):  # not there; a ring of links
            return None
        return real if real != self.root and real.is_relative_to(self.root) else None

    def _names(self) -> list[str]:
        """For messages: the names that lie there, without a look into the folders."""
        return [entry for entry in os.listdir(self.root) if not entry.startswith(".")][:1000]


def _file_signature(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _configurations(folder: Path) -> Signature:
    try:
        entries = sorted(os.scandir(folder / FOLDER), key=lambda entry: entry.name)
    except OSError:
        return ()
    return tuple((entry.name, *_file_signature(Path(entry.path))) for entry in entries if entry.is_file())


def directory_from_environment() -> AdapterDirectory | None:
    """The directory that `SQFT_ADAPTERS_DIR` names, None where it is not set. Raises SQFTError where it is none."""
    root = os.environ.get(VARIABLE)
    return AdapterDirectory(root) if root else None
