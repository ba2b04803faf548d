"""`--template-gguf`: a GGUF file of the same base tells where the tensors of a model stand that has no table here.

Names come from the gguf package's map. In which order llama.cpp wants the rows is nowhere to be read, so it is *seen*:
every tensor of the model is held against the template's, as it is and in the few other ways that converters know (rows
in rotary order, transposed, 1 added to a norm), and must look like it in just one. Tensors that a converter fuses,
splits or scales look like it in none and are refused, and so is a template of another base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf_ext.arch import Entry, rotary_order
from gguf_ext.errors import TemplateError, UnmappedTensorError
from gguf_ext.foreign import weights
from gguf_ext.reader import GGUFFile, TensorInfo
from gguf_ext.write.plan import Source
from gguf_ext.write.transcode import require_gguf
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import nonzero_mask
from sqft_plugins.progress import track

OWN = (
    "general.architecture", "general.alignment", "general.type", "general.name", "general.size_label",
    "general.quantized_by", "general.file_type", "general.quantization_version",
)  # fmt: skip
SKIPPED = ("split.", "sqft.", "quantize.", "general.base_model.")
"""Entries of a template that are about its weights or its file: ours take their place."""
HEADS = {"attn_q": "head_count", "attn_k": "head_count_kv", "attn_q_norm": "head_count", "attn_k_norm": "head_count_kv"}
"""Modules whose rows llama.cpp may want in rotary order → the entry that counts their heads."""
ROWS = 256
"""Rows of a matrix that are held against the template's, from all over it."""
SIMILAR, APART = 0.5, 0.2
"""Cosine of kept weights and the template's: at least, and above that in any other order. Seen on Gemma-3-270M, 50 %
pruned: above 0.999 when tuned, 0.989 after GPTQ, below 0.05 in a wrong order."""
SCALED = 1.5
"""By what factor the kept weights may have grown or shrunk against the template's."""
ERROR = 0.02
"""Of a norm or a bias, relative: they are not pruned, a template holds them in 8 significant bits or more."""


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
    tokens = template.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(tokens) != rows:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise TemplateError(
            f"template {template.path} has {count} tokens, the model {rows} rows in its embedding: "
            f"give a file of the same base"
        )


def template_sources(folder: ModelFolder, template: GGUFFile) -> list[Source]:
    """Every tensor of the file, in the order of the template. Raises TemplateError, UnmappedTensorError, GGUFError for
    a type that nobody decodes."""
    placed = _placed(folder, template)
    found: dict[str, Source] = {}
    # matrices first: a bias stands in the order of its weight
    for name in track(sorted(placed, key=lambda name: not name.endswith(".weight")), "comparing with the template"):
        sibling = found.get(f"{name.rpartition('.')[0]}.weight")
        found[name] = _fitted(folder, template, placed[name], sibling)
    for name, info in template.tensors.items():
        if name not in found:
            found[name] = _constant(template, info)
    return [found[name] for name in template.tensors]


def _placed(folder: ModelFolder, template: GGUFFile) -> dict[str, Source]:
    """Name in the template → tensor of the model, by name alone."""
    names = _name_map(template)
    packed = {part: module for module in folder.int4.modules for part in folder.parts(module)}
    quantized = set(packed.values())
    placed: dict[str, Source] = {}
    for name in sorted(folder.tensor_names):
        if name.endswith((".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")):
            continue
        module, _, part = (packed[name], "", "weight") if name in packed else name.rpartition(".")
        target = names.get_name(f"{module}.{part}", (".weight", ".bias"))
        if target not in template.tensors:
            if part == "bias" and module in quantized and not bool(folder.tensor(name).any()):
                continue  # AutoGPTQ gives each of its layers a bias
            if target == "output.weight" and _is_the_embedding(folder, name, placed):
                continue
            where = f"{target}, which the template has not" if target else "no place that the gguf package knows"
            raise UnmappedTensorError(
                f"tensor {name} of model {folder.path} has {where}: give a file of the same base, or export another"
            )
        int4 = module if part == "weight" and module in quantized else None
        if target in placed and int4 is not None and placed[target].module == int4:
            continue  # another part of the same weight
        if target in placed:
            raise UnmappedTensorError(
                f"tensors {placed[target].tensor} and {name} of model {folder.path} both are {target}: export another"
            )
        placed[target] = Source(target, f"{module}.{part}", owner=module, module=int4)
    if "output.weight" in template.tensors and "output.weight" not in placed and "token_embd.weight" in placed:
        embedding = placed["token_embd.weight"]  # tied in the model, written twice in the template
        placed["output.weight"] = replace(embedding, name="output.weight")
    return placed


def _is_the_embedding(folder: ModelFolder, name: str, placed: dict[str, Source]) -> bool:
    """Whether a head that the template lacks is but a copy of the embedding, which llama.cpp takes then."""
    embedding = placed.get("token_embd.weight")
    return (
        embedding is not None
        and embedding.module is None
        and name in folder.files
        and torch.equal(folder.tensor(name), folder.tensor(embedding.tensor))
    )


def _name_map(template: GGUFFile) -> Any:
    gguf = require_gguf()
    named = template.metadata.get("general.architecture")
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if not isinstance(named, str) or named not in kinds:
        raise TemplateError(
            f"template {template.path} has the general.architecture {named!r}, which the installed gguf does "
            f"not know: upgrade it, or give another file"
        )
    blocks = template.metadata.get(f"{named}.block_count")
    if not isinstance(blocks, int) or not 0 < blocks <= len(template.tensors):
        raise TemplateError(
            f"template {template.path} has {blocks!r} blocks in {len(template.tensors)} tensors: give another"
        )
    return gguf.get_tensor_name_map(kinds[named], blocks)


def _constant(template: GGUFFile, info: TensorInfo) -> Source:
    """What stands in no checkpoint: rope factors."""
    if len(info.shape) > 1 or not info.name.rpartition(".")[0].rpartition(".")[2].startswith("rope_f"):
        raise TemplateError(
            f"template {template.path} has {info.name}, for which the model has no tensor: give a file of the same base"
        )
    return Source(info.name, "", constant=torch.from_numpy(weights(template, info).reshape(-1).copy()))


def _fitted(folder: ModelFolder, template: GGUFFile, source: Source, sibling: Source | None) -> Source:
    """`source` put so that it looks like the template's tensor. Raises TemplateError where nothing does."""
    info = template.tensors[source.name]
    if len(info.shape) == 1:
        return _fitted_vector(folder, template, source, info, sibling)
    weight = source.quantized(folder) if source.module else source.float_weight(folder)
    shape = tuple(weight.codes.shape if isinstance(weight, QuantizedWeight) else weight.shape)
    ways = [
        way for way in _ways(template, source, info) if shape == (info.shape[::-1] if way.transposed else info.shape)
    ]
    if not ways or len(info.shape) != 2 or 0 in info.shape:
        raise TemplateError(
            f"{source.name} is {info.shape} in template {template.path}, {source.tensor} {shape} in the model: "
            f"give a file of the same base"
        )
    rows = torch.from_numpy(np.unique(np.linspace(0, info.shape[0] - 1, ROWS).round().astype(np.int64)))
    there = torch.from_numpy(weights(template, info, rows.numpy()))
    seen = [(*_likeness(_some_rows(weight, way, rows), there), way) for way in ways]
    seen.sort(key=lambda item: -item[0])
    best, factor, way = seen[0]
    rest = seen[1][0] if len(seen) > 1 else -1.0
    if not (best >= SIMILAR and best - rest >= APART and 1 / SCALED <= factor <= SCALED):
        raise TemplateError(
            f"{source.tensor} does not look like {source.name} of template {template.path} (cosine {best:.2f}, "
            f"factor {factor:.2g}): it is of another base, or llama.cpp keeps this tensor in an unknown order"
        )
    return way


def _ways(template: GGUFFile, source: Source, info: TensorInfo) -> Iterator[Source]:
    """In which a converter may have put the tensor."""
    yield source
    if source.module is None and len(info.shape) == 2:
        yield replace(source, transposed=True)
    yield from (replace(source, order=order) for order in _orders(template, source.name, info.shape[0]))


def _orders(template: GGUFFile, name: str, rows: int) -> Iterator[Tensor]:
    """The rotary order of the rows, of q and k."""
    architecture = template.metadata["general.architecture"]
    module = name.rpartition(".")[0].rpartition(".")[2]
    if module not in HEADS:
        return
    heads = template.metadata.get(f"{architecture}.attention.{HEADS[module]}")
    for count in dict.fromkeys([heads, 1] if module.endswith("_norm") else [heads]):
        if isinstance(count, int) and count > 0 and rows % (2 * count) == 0 and rows > 2 * count:
            yield rotary_order(rows, count)


def _some_rows(weight: Tensor | QuantizedWeight, way: Source, rows: Tensor) -> Tensor:
    """float32 [rows, in] of the model's tensor put that way."""
    picked = rows if way.order is None else way.order[rows]
    if isinstance(weight, QuantizedWeight):
        return QuantizedWeight(*(part[picked] for part in weight)).dequantize()
    return (weight.t() if way.transposed else weight)[picked].to(torch.float32)


def _likeness(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """(cosine, factor) of our kept weights against the same ones of the template; (0, 0) where none is kept or one is
    no number."""
    ours, theirs = ours.to(torch.float64), theirs.to(torch.float64) * nonzero_mask(ours)
    dot, own, their = float((ours * theirs).sum()), float(ours.square().sum()), float(theirs.square().sum())
    if not (own > 0 and 0 < their < float("inf")):
        return 0.0, 0.0
    return dot / (own * their) ** 0.5, dot / their


def _fitted_vector(
    folder: ModelFolder, template: GGUFFile, source: Source, info: TensorInfo, sibling: Source | None
) -> Source:
    there = torch.from_numpy(weights(template, info)).reshape(-1)
    ways = [source, replace(source, add=1.0)]
    if sibling is not None and source.name.endswith(".bias"):
        ways = [replace(source, order=sibling.order)]
    else:
        ways += [replace(way, order=order) for way in ways for order in _orders(template, source.name, len(there))]
    best, error = source, float("inf")
    for way in ways:
        ours = folder.tensor(source.tensor)
        if tuple(ours.shape) != info.shape:
            raise TemplateError(
                f"{source.name} is {info.shape} in template {template.path}, {source.tensor} "
                f"{tuple(ours.shape)} in the model: give a file of the same base"
            )
        ours = way.float_weight(folder).to(torch.float32)
        size = max(float(there.norm()), float(ours.norm()))
        wrong = float((ours - there).norm()) / size if size else 0.0
        if wrong < error / 2:  # the plain way, unless another is clearly nearer
            best, error = way, wrong
    if not error <= ERROR:
        raise TemplateError(
            f"{source.tensor} is not {source.name} of template {template.path} (relative difference "
            f"{error:.2g}): it is of another base, or llama.cpp keeps this tensor in another form"
        )
    return best
