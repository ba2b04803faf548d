"""What one directory of adapters serves. Nothing outside it is opened, whatever a name or a link says."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from sqft_plugins.adapter.folder import CONFIG, WEIGHTS
from sqft_plugins.configurations import FOLDER, saved_configurations
from sqft_plugins.errors import CheckpointError, SQFTError, nearest
from sqft_plugins.identity import while_unchanged
from vllm_ext.adapters.folder import Records, ServedAdapter, open_adapter, records
from vllm_ext.adapters.names import AdapterName, AdapterNameError, parse_name, shown, why_not_served
from vllm_ext.variables import ADAPTERS_DIR

_opened = while_unchanged(open_adapter, records)


class UnknownAdapterError(SQFTError):
    """A well-formed name of no adapter in the directory."""


class AdapterDirectory:
    """The adapter folders right below `root`; read anew at each question, so adapters come and go while a server runs.

    A folder counts if it has an adapter_config.json and its name can be served (names.py). Links are followed only to
    what lies inside `root`. May be asked from several threads. served: the names of the base.
    """

    def __init__(self, root: str | Path, served: Collection[str] = ()):
        self.served = served
        self.given = Path(root)
        self.root = self.given.resolve()
        if not self.root.is_dir():
            raise SQFTError(f"adapters directory {root} is not a folder: make it, or set {ADAPTERS_DIR} to one that is")
        if any((self.root / file).exists() for file in (CONFIG, WEIGHTS)):
            raise SQFTError(
                f"adapters directory {root} is an adapter itself: give the folder it lies in, {self.root.parent}"
            )

    def __iter__(self) -> Iterator[str]:
        """The names of the adapter folders, in order; whether they are whole is not looked at."""
        kept_out = self.kept_out()
        return (name for name in self._adapters() if name not in kept_out)

    def check_names(self) -> None:
        """Raises AdapterNameError for adapters that cannot be served for their names."""
        reasons = {name: why for name in self._adapters() if (why := why_not_served(name, self.served)) is not None}
        for name, why in reasons.items():
            more = f" ({len(reasons) - 1} more cannot be served either)" if len(reasons) > 1 else ""
            raise AdapterNameError(f"adapter {shown(name)} in {self.given} cannot be served: {why}{more}")

    def kept_out(self) -> dict[str, str]:
        """Of the folders that look like adapters those that no name leads to, such as links out: {folder: why}."""
        reasons = {}
        for name in self._adapters():
            try:
                self.find(name)
            except SQFTError as error:
                reasons[name] = str(error)
        return reasons

    def find(self, name: str) -> Path:
        """The folder of an adapter. Raises UnknownAdapterError, also where its files lie outside of the directory, and
        CheckpointError where they may not be read."""
        if parse_name(name) != AdapterName(name):
            raise AdapterNameError(f"adapter name {name!r} holds an @ or a *")
        why = why_not_served(name, self.served)
        if why is not None and self._is_adapter(name):
            raise AdapterNameError(f"adapter {name} cannot be served: {why}")
        try:
            return self._find(name)
        except FileNotFoundError as error:
            raise UnknownAdapterError(f"adapter {name!r} was removed just now") from error
        except OSError as error:
            raise CheckpointError(f"adapter {name} cannot be read: {error.strerror}") from error

    def _find(self, name: str) -> Path:
        entries = self._entries()
        # the folder's own name: where case does not count, and a last dot, others lead to it, too
        folder = self._inside(self.root / name) if name in entries else None
        if folder is None and name in entries and self._is_adapter(name):
            raise UnknownAdapterError(f"adapter {name!r} is a link out of {self.given}: copy it there")
        if folder is None or not (folder / CONFIG).is_file():
            known = [entry for entry in entries if not entry.startswith(".")][:1000]
            raise UnknownAdapterError(f"adapter {name!r} is not in {self.given}: {nearest(name, known)}")
        for file in (folder / CONFIG, folder / WEIGHTS, folder / FOLDER, *saved_configurations(folder).values()):
            if file.exists() and self._inside(file) is None:
                raise UnknownAdapterError(f"adapter {name!r}: {file.name} is a link out of {self.given}, copy it there")
        return folder

    def records(self, name: str) -> Records | None:
        """As `folder.records`: None where the adapter is gone."""
        try:
            return records(self.root / name)
        except OSError:
            return None

    def open(self, name: str) -> ServedAdapter:
        """The adapter, checked; the checks run again only when a file has changed. Raises as `find` and `open_adapter`
        do."""
        try:
            return _opened(self.find(name))
        except OSError as error:
            raise UnknownAdapterError(f"adapter {name!r} was removed just now") from error

    def folders(self) -> Iterator[tuple[str, ServedAdapter]]:
        """(name, folder) of every adapter, in order. Those that are not whole are left out."""
        for name in self:
            with suppress(SQFTError):
                yield name, self.open(name)

    def _inside(self, path: Path) -> Path | None:
        """The path with links resolved, None where it is not there or not below the root."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):  # not there; a ring of links
            return None
        return real if real != self.root and real.is_relative_to(self.root) else None

    def _adapters(self) -> list[str]:
        """The folders that look like adapters, in order; hidden ones are nobody's."""
        return [entry for entry in self._entries() if not entry.startswith(".") and self._is_adapter(entry)]

    def _is_adapter(self, entry: str) -> bool:
        try:
            return (self.root / entry / CONFIG).is_file()
        except OSError:
            return False

    def _entries(self) -> list[str]:
        """What lies there, in order; nothing where the directory is gone, as while a disk is not mounted."""
        try:
            return sorted(os.listdir(self.root))
        except OSError:
            return []
