"""The weights of a file under the names of a checkpoint: the table of its architecture, read backwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gguf_ext.arch import find_architecture
from gguf_ext.errors import UnsupportedArchitectureError
from gguf_ext.reader import GGUFFile


def checkpoint_weights(path: str | Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name in the checkpoint → float32 tensor, of every weight that the file has.

    config: as in config.json, of which `architectures` and `num_hidden_layers` are read.

    Raises UnsupportedArchitectureError for a model without a table, or one whose rows stand otherwise in a file, and as
    `GGUFFile.dequantize` does.
    """
    file, table = GGUFFile(path), find_architecture(dict(config), path)
    weights = {}
    for rule in table.rules:
        if rule.rows is not None or rule.transposed:
            raise UnsupportedArchitectureError(f"{path}: {rule.source} stands otherwise in a file: give a folder")
        for layer in range(config["num_hidden_layers"]) if "{i}" in rule.source else (0,):
            name = f"{table.target(rule).format(i=layer)}.weight"
            if name in file.tensors:
                weight = torch.from_numpy(file.dequantize(name)).view(file.tensors[name].shape)
                weights[f"{rule.source.format(i=layer)}.weight"] = weight - rule.add
    return weights
