"""Model and adapter folders: reading, writing, stamps and masks.

Models in memory need transformers, which takes seconds to import: it is imported when one of `load_model`,
`load_tokenizer` and `save_model` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.files import check_output, write_file, write_folder
    from sqft_plugins.checkpoint.folder import ModelFolder
    from sqft_plugins.checkpoint.load import load_model, load_tokenizer, save_model
    from sqft_plugins.checkpoint.model_file import ModelFile, open_model
    from sqft_plugins.checkpoint.stamp import GridStamp, Stamp, write_sidecar
    from sqft_plugins.checkpoint.writer import copy_side_files

__all__ = [
    "GridStamp",
    "ModelFile",
    "ModelFolder",
    "Stamp",
    "check_output",
    "copy_side_files",
    "load_model",
    "load_tokenizer",
    "open_model",
    "save_model",
    "write_file",
    "write_folder",
    "write_sidecar",
]
_HOMES = {
    "files": ["check_output", "write_file", "write_folder"],
    "folder": ["ModelFolder"],
    "model_file": ["ModelFile", "open_model"],
    "load": ["load_model", "load_tokenizer", "save_model"],
    "stamp": ["GridStamp", "Stamp", "write_sidecar"],
    "writer": ["copy_side_files"],
}
__getattr__ = lazy(__name__, {name: module for module, names in _HOMES.items() for name in names})
