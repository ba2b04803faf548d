"""Tensors of a checkpoint ↔ tensors of a file, by the table of its architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gguf_ext.arch import Architecture, Config, Rule
from gguf_ext.errors import UnmappedTensorError
from gguf_ext.reader import GGUFFile

HEAD = "lm_head"
"""The module that a file with a tied head lacks, in every table."""


class Stored(NamedTuple):
    """tensor: the name in the file. rule: of the module that the tensor belongs to. is_weight: False for a bias."""

    tensor: str
    rule: Rule
    is_weight: bool


def stored_tensors(file: GGUFFile, table: Architecture, config: Config) -> Mapping[str, Stored]:
    """Name in the checkpoint → where it stands in the file, of every tensor that the checkpoint has, in the order of
    the table. Raises UnmappedTensorError for a tensor that the model needs and the file lacks, and the other way
    round."""
    found: dict[str, Stored] = {}
    for module, target, rule in _modules(table, int(config["num_hidden_layers"])):
        needed = {"weight": rule.required, "bias": rule.bias == "required"}
        if module == HEAD:
            needed["weight"] = not config["tie_word_embeddings"]
        for kind in ("weight", "bias"):
            name = f"{target}.{kind}"
            if name in file.tensors and (kind == "weight" or rule.bias != "none"):
                found[f"{module}.{kind}"] = Stored(name, rule, kind == "weight")
            elif needed[kind]:
                raise UnmappedTensorError(f"{file.path} has no tensor {name}: copy the whole file again")

    known = {stored.tensor for stored in found.values()} | table.constants(config).keys()
    if rest := [name for name in file.tensors if name not in known]:
        raise UnmappedTensorError(
            f"{file.path}: tensor {rest[0]} ({len(rest)} in all) has no place in a {table.classes[0]} of transformers: "
            "give a model folder"
        )
    return found


def _modules(table: Architecture, layers: int) -> Iterator[tuple[str, str, Rule]]:
    """(module of the checkpoint, its name in the file, its rule), those of the layers last."""
    for rule in (rule for rule in table.rules if "{i}" not in rule.source):
        yield rule.source, table.target(rule), rule
    for layer in range(layers):
        for rule in (rule for rule in table.rules if "{i}" in rule.source):
            yield rule.source.format(i=layer), table.target(rule).format(i=layer), rule
