"""Model and adapter folders: reading, writing, stamps and masks."""

from sqft_plugins.checkpoint.files import check_output, write_file, write_folder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.int4 import write_int4
from sqft_plugins.checkpoint.load import load_model, load_tokenizer, save_model
from sqft_plugins.checkpoint.stamp import GridStamp, Stamp, write_sidecar
from sqft_plugins.checkpoint.writer import copy_side_files

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
