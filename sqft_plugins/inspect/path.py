"""What is in a path, whichever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sqft_plugins.adapter import is_adapter
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect.adapter import inspect_adapter
from sqft_plugins.inspect.model import inspect_model
from sqft_plugins.pattern import asked_patterns
from sqft_plugins.plugins.protocols import Inspector


def inspect_path(path: str | Path, pattern: str | None = None) -> dict[str, Any]:
    """The report of a model folder (`inspect_model`), an adapter (`inspect_adapter`) or of what a plug-in opens.

    pattern: an N:M to look for beside 2:4, 4:8 and 1:4.

    Raises SQFTError for a pattern that is not an N:M, CheckpointError for a path that nothing here reads or that is
    damaged.
    """
    patterns, path = asked_patterns(pattern), Path(path)

    if is_adapter(path):
        return inspect_adapter(path)
    if not (path / "config.json").is_file():
        from sqft_plugins.plugins import get_manager

        inspectors = cast(dict[str, Inspector], get_manager().collect("sqft_inspectors"))
        for inspector in inspectors.values():
            if inspector.opens(path):
                return dict(inspector.inspect(path, patterns))
        if path.is_file():
            known = ", ".join(inspectors) or "none"
            raise CheckpointError(f"{path} is a file that nothing here reads: give a folder; plug-ins read: {known}")
    return inspect_model(ModelFolder(path), patterns)
