"""Model and adapter folders: reading, writing, stamps and masks.

Models in memory need transformers, which takes seconds to import: it is imported when one of `load_model`,
`load_tokenizer` and `save_model` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqft_plugins.checkpoint.files import check_output, write_file, write_folder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.int4 import write_int4
from sqft_plugins.checkpoint.stamp import GridStamp, Stamp, write_sidecar
from sqft_plugins.checkpoint.writer import copy_side_files

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.load import load_model, load_tokenizer, save_model

__all__ = [
    "GridStamp",
    "ModelFolder",
    "Stamp",
    "check_output",
    "copy_side_files",
    "load_model",
    "load_tokenizer",
    "save_model",
    "write_file",
    "write_folder",
    "write_int4",
    "write_sidecar",
]


def __getattr__(name: str) -> Any:
    if name in ("load_model", "load_tokenizer", "save_model"):
        from sqft_plugins.checkpoint import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
