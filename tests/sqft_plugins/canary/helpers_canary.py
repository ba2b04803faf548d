"""A project of somebody else's, written into a folder, and a package of ours that uses it."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

from sqft_plugins.plugins.protocols import Touch, Upstream

_numbers = itertools.count()


class Written:
    """theirs, ours: the names of the two packages; others are free in `theirs` to move."""

    def __init__(self, folder: Path):
        number = next(_numbers)  # nothing of another test is taken for it
        self.folder, self.theirs, self.ours = folder, f"theirs_{number}", f"ours_{number}"

    def write(self, **files: str) -> None:
        """file of `theirs` (without .py; `ours` for the one module of ours) → its source, THEIRS for the name."""
        for name, text in files.items():
            package = self.ours if name == "ours" else self.theirs
            file = self.folder / package / ("__init__.py" if name in ("ours", "init") else f"{name}.py")
            file.parent.mkdir(exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(text.replace("THEIRS", self.theirs))
        importlib.invalidate_caches()

    def upstream(self, *touches: Touch, seen: str = "", **more: object) -> Upstream:
        return Upstream(self.ours, {self.theirs: seen}, touches, **more)  # type: ignore[arg-type]
