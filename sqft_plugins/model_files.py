"""Models that are no folder: a path or a name that a plug-in opens (hook `sqft_models`), such as a `.gguf` file.

A folder is never asked about, so that reading one loads no plug-in.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqft_plugins.identity import record_of
from sqft_plugins.plugins import get_manager

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.model_file import ModelFile
    from sqft_plugins.plugins.protocols import ModelReader


def reader_of(model: str | Path) -> ModelReader | None:
    """The plug-in that opens `model`; None for a folder, and for what no plug-in reads."""
    if Path(model).is_dir():
        return None
    readers = cast("dict[str, ModelReader]", get_manager().collect("sqft_models"))
    return next((reader for reader in readers.values() if reader.opens(model)), None)


def open_file(model: str | Path) -> ModelFile | None:
    """The model behind a path or a name, opened once while its file stays as it is; None for a folder, and for what no
    plug-in reads. Raises SQFTError for a file that is damaged, or that holds no model that can be loaded."""
    reader = reader_of(model)
    if reader is None:
        return None
    path = reader.locate(model)
    return _opened(reader.name, path, record_of(path))


@lru_cache(maxsize=2)  # a vocabulary takes a second to read, and some hundred megabytes
def _opened(reader: str, path: Path, record: Any) -> ModelFile:
    return cast("ModelFile", get_manager().get("sqft_models", reader, "model").open(path))
