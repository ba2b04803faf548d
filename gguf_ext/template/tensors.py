"""`--template-gguf`: a GGUF file of the same base says where the tensors of a model stand that has no table here.

Names come from the gguf package's map, the order of the rows from `fit`. Tensors that a converter fuses, splits or
scales look like none of the template's and are refused, and so is a template of another base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gguf_ext.arch import Entry
from gguf_ext.errors import TemplateError, UnmappedTensorError
from gguf_ext.gguf_package import tensor_names
from gguf_ext.header import TensorInfo
from gguf_ext.reader import GGUFFile
from gguf_ext.template.fit import fitted
from gguf_ext.tokenizer.keys import TOKENS
from gguf_ext.write.tensors import Part, PlacedTensor, parts_of
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import track

OWN = (
    "general.architecture", "general.alignment", "general.type", "general.name", "general.size_label",
    "general.quantized_by", "general.file_type", "general.quantization_version",
)  # fmt: skip
SKIPPED = ("split.", "sqft.", "quantize.", "general.base_model.")
"""Entries of a template that are about its weights or its file: ours take their place."""
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of names in a checkpoint that are no weights."""
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def copied_entries(template: GGUFFile) -> tuple[list[Entry], list[Entry]]:
    """The metadata that a file takes over: (description and tokenizer, hyper-parameters)."""
    described: list[Entry] = []
    model: list[Entry] = []
    for key, value in template.metadata.items():
        if key in OWN or key.startswith(SKIPPED):
            continue
        own = key.startswith(("general.", "tokenizer."))
        (described if own else model).append(Entry(key, value, template.kinds[key]))
    return described, model


def check_tokens(template: GGUFFile, rows: int) -> None:
    """Raises TemplateError for a tokenizer that does not give each row of the embedding a token."""
    tokens = template.metadata.get(TOKENS)
    if not isinstance(tokens, list) or len(tokens) != rows:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise TemplateError(
            f"template {template.path} has {count} tokens, the model {rows} rows in its embedding: "
            f"give a file of the same base"
        )


def template_tensors(folder: ModelFolder, template: GGUFFile) -> list[PlacedTensor]:
    """Every tensor of the file, in the order of the template. Raises TemplateError, UnmappedTensorError, and GGUFError
    for a type that cannot be decoded."""
    placed = _placed_by_name(folder, template)

    found: dict[str, PlacedTensor] = {}
    # matrices first: a bias stands in the order of its weight
    for name in track(sorted(placed, key=lambda name: not name.endswith(".weight")), "comparing with the template"):
        sibling = found.get(f"{name.rpartition('.')[0]}.weight")
        found[name] = fitted(folder, template, placed[name], sibling)

    for name, info in template.tensors.items():
        if name not in found:
            found[name] = _constant(template, info)
    return [found[name] for name in template.tensors]


def _placed_by_name(folder: ModelFolder, template: GGUFFile) -> dict[str, PlacedTensor]:
    """Name in the template → tensor of the model, by name alone: `model.layers.3.mlp.up_proj.weight_packed` →
    `blk.3.ffn_up.weight`."""
    names = _name_map(template)
    placed: dict[str, PlacedTensor] = {}

    for part in parts_of(folder):
        if part.name.endswith(BUFFERS):
            continue
        name = names.get_name(f"{part.module}.{part.kind}", (".weight", ".bias"))
        if name not in template.tensors and part.is_spare(folder):
            continue

        tensor = _placed(folder, part, name)
        if placed.get(tensor.name, tensor) != tensor:  # equal: another part of the same INT4 weight
            raise UnmappedTensorError(
                f"tensors {placed[name].tensor} and {part.name} of model {folder.path} both are {name}: export another"
            )
        placed[tensor.name] = tensor

    return _complete(folder, template, placed)


def _placed(folder: ModelFolder, part: Part, name: str | None) -> PlacedTensor:
    if not name:
        raise UnmappedTensorError(
            f"tensor {part.name} of model {folder.path} has no place that the gguf package knows: give a file of the "
            "same base, or export another"
        )
    return PlacedTensor(name, f"{part.module}.{part.kind}", owner=part.module, module=part.int4_module)


def _complete(folder: ModelFolder, template: GGUFFile, placed: dict[str, PlacedTensor]) -> dict[str, PlacedTensor]:
    """With the head as the template has it, where it is the embedding. Raises UnmappedTensorError for tensors that the
    template lacks."""
    embedding, head = placed.get(EMBEDDING), placed.get(HEAD)
    if embedding is not None and head is None and HEAD in template.tensors:
        placed[HEAD] = replace(embedding, name=HEAD)  # tied in the model, written twice in the template
    elif embedding is not None and head is not None and HEAD not in template.tensors:
        plain = embedding.module is None and head.module is None
        if plain and torch.equal(folder.tensor(head.tensor), folder.tensor(embedding.tensor)):
            del placed[HEAD]  # a copy of the embedding, which llama.cpp takes itself

    for name, tensor in placed.items():
        if name not in template.tensors:
            raise UnmappedTensorError(
                f"tensor {tensor.tensor} of model {folder.path} has {name}, which the template has not: give a file of "
                "the same base, or export another"
            )
    return placed


def _name_map(template: GGUFFile) -> Any:
    named = template.metadata.get("general.architecture")
    if not isinstance(named, str) or tensor_names(named, 1) is None:
        raise TemplateError(
            f"template {template.path} has the general.architecture {named!r}, which the installed gguf does "
            f"not know: upgrade it, or give another file"
        )

    blocks = template.metadata.get(f"{named}.block_count")
    if not isinstance(blocks, int) or not 0 < blocks <= len(template.tensors):
        raise TemplateError(
            f"template {template.path} has {blocks!r} blocks in {len(template.tensors)} tensors: give another"
        )
    return tensor_names(named, blocks)


def _constant(template: GGUFFile, info: TensorInfo) -> PlacedTensor:
    """What stands in no checkpoint: rope factors."""
    if len(info.shape) > 1 or not info.name.rpartition(".")[0].rpartition(".")[2].startswith("rope_f"):
        raise TemplateError(
            f"template {template.path} has {info.name}, for which the model has no tensor: give a file of the same base"
        )
    return PlacedTensor(info.name, "", constant=torch.from_numpy(template.dequantize(info.name).reshape(-1).copy()))
