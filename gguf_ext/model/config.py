"""The configuration of a model by its file: the tables of `gguf_ext.arch` read backwards, and compared with the file.

Not by transformers' `AutoConfig.from_pretrained(gguf_file=…)`: it reads the whole vocabulary with it, 13 s and 2 GB for
one of 262,144 tokens, and leaves out what it does not know (scaled rotary positions, soft caps) without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from gguf_ext.arch import Architecture, Config, Told, known_architectures, normalized
from gguf_ext.errors import UnsupportedArchitectureError
from gguf_ext.hyperparameters.compare import File, compare_entries
from gguf_ext.hyperparameters.config import counterparts
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.keys import id_key
from sqft_plugins.errors import SQFTError, nearest

EMBEDDING = "token_embd.weight"
REMEDY = "give a model folder"


class Described(NamedTuple):
    """table: of the architecture. config: of transformers. complete: the same with transformers' defaults and common
    names, as the table reads it."""

    table: Architecture
    config: PretrainedConfig
    complete: Config


def read_config(file: GGUFFile) -> Described:
    """The configuration that a file means. Raises UnsupportedArchitectureError for an architecture without a table, and
    for a hyper-parameter or a rotary factor that no model of transformers' class has."""
    table = find_table(file)
    try:
        fields = {**table.config_of(told(file)), **_tokens(file), "vocab_size": _rows(file)}
        config = AutoConfig.for_model(dtype="float32", **fields)
        complete = normalized(config, file.path, table)
        different = next(differences(file, table, complete), None)
    except SQFTError:
        raise
    except Exception as error:  # checks of transformers' and of huggingface_hub's, entries of a wrong type
        raise UnsupportedArchitectureError(
            f"{file.path}: its hyper-parameters make no {table.classes[0]} ({' '.join(str(error).split())[:160]}): "
            f"{REMEDY}"
        ) from error

    if different is not None:
        what, line = different
        raise UnsupportedArchitectureError(
            f"{file.path}: {what} {line}: transformers' {table.classes[0]} computes something else, {REMEDY}"
        )
    return Described(table, config, complete)


def find_table(file: GGUFFile) -> Architecture:
    """The table of the file's architecture. Raises UnsupportedArchitectureError."""
    name = str(file.metadata.get("general.architecture"))
    tables = [table for table in known_architectures().values() if table.told is not None]
    said = told(file)
    found = next((table for table in tables if table.name == name and table.reads(said)), None)
    if found is None:
        known = sorted({table.name for table in tables})
        raise UnsupportedArchitectureError(
            f"{file.path} is {name}, which has no table to read a file by: {nearest(name, known)}; or {REMEDY}"
        )
    return found


def told(file: GGUFFile) -> Told:
    """What the file says, as llama.cpp reads it."""
    name = str(file.metadata.get("general.architecture"))

    def constant(tensor: str) -> Tensor:
        return torch.from_numpy(file.dequantize(tensor)).flatten()

    return Told(File(name, file.metadata).get, file.tensors.keys(), constant)


def differences(file: GGUFFile, table: Architecture, config: Config) -> Iterator[tuple[str, str]]:
    """(key or tensor, line) of what a model of this configuration would have otherwise in its file."""
    for key, line in compare_entries(table.name, table.metadata(config), file, counterparts(config)):
        if not key.startswith("sqft."):  # how the file was made
            yield key, line

    wanted = table.constants(config)
    for name in sorted({*wanted, *(name for name in file.tensors if name.startswith("rope_f"))}):
        if name not in wanted or name not in file.tensors:
            yield name, "is in the file alone" if name in file.tensors else "is missing in the file"
            continue
        found = told(file).constant(name)
        if found.shape != wanted[name].shape or not torch.allclose(found, wanted[name], rtol=1e-5):
            yield name, "holds other factors"


def _tokens(file: GGUFFile) -> dict[str, Any]:
    """The ids of special tokens."""
    return {f"{name}_token_id": file.metadata.get(id_key(name)) for name in ("bos", "eos", "pad")}


def _rows(file: GGUFFile) -> int:
    """The tokens that the embedding has."""
    if EMBEDDING not in file.tensors:
        raise UnsupportedArchitectureError(f"{file.path} has no tensor {EMBEDDING}: it holds no language model")
    return file.tensors[EMBEDDING].shape[0]
