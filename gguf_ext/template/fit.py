"""In which order of rows a template has a tensor: seen by comparing weights, for it is nowhere to be read.

Every tensor of the model is held against the template's, as it is and in the few other ways that converters know (rows
in rotary order, transposed, 1 added to a norm), and must look like it in just one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gguf_ext.arch import rotary_order
from gguf_ext.errors import TemplateError
from gguf_ext.header import TensorInfo
from gguf_ext.reader import GGUFFile
from gguf_ext.write.tensors import PlacedTensor
from gguf_ext.write.transcode import shape_of
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import nonzero_mask

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


def fitted(folder: ModelFolder, template: GGUFFile, tensor: PlacedTensor, sibling: PlacedTensor | None) -> PlacedTensor:
    """`tensor` put so that it looks like the template's of that name. sibling: the weight of a bias, which has the same
    order. Raises TemplateError where no way looks like it, GGUFError for a type that cannot be decoded."""
    info = template.tensors[tensor.name]
    if len(info.shape) == 1:
        return _fitted_vector(folder, template, tensor, info, sibling)
    return _fitted_matrix(folder, template, tensor, info)


def _fitted_matrix(folder: ModelFolder, template: GGUFFile, tensor: PlacedTensor, info: TensorInfo) -> PlacedTensor:
    # the ways that give the template's shape
    weight = tensor.weight(folder)
    shape = shape_of(weight)
    ways = [
        way for way in _ways(template, tensor, info) if shape == (info.shape[::-1] if way.transposed else info.shape)
    ]
    if not ways or len(info.shape) != 2 or 0 in info.shape:
        raise _other_shape(template, tensor, info, shape)

    # how alike some rows are, in each way
    rows = torch.from_numpy(np.unique(np.linspace(0, info.shape[0] - 1, ROWS).round().astype(np.int64)))
    there = torch.from_numpy(template.dequantize(info.name, rows.numpy()))
    seen = [(*_likeness(_some_rows(weight, way, rows), there), way) for way in ways]
    seen.sort(key=lambda item: -item[0])

    # one way is like the template's, and no other nearly as much
    best, factor, way = seen[0]
    rest = seen[1][0] if len(seen) > 1 else -1.0
    if not (best >= SIMILAR and best - rest >= APART and 1 / SCALED <= factor <= SCALED):
        raise TemplateError(
            f"{tensor.tensor} does not look like {tensor.name} of template {template.path} (cosine {best:.2f}, "
            f"factor {factor:.2g}): it is of another base, or llama.cpp keeps this tensor in an unknown order"
        )
    return way


def _fitted_vector(
    folder: ModelFolder, template: GGUFFile, tensor: PlacedTensor, info: TensorInfo, sibling: PlacedTensor | None
) -> PlacedTensor:
    shape = tuple(folder.tensor(tensor.tensor).shape)
    if shape != info.shape:
        raise _other_shape(template, tensor, info, shape)

    ways = [tensor, replace(tensor, add=1.0)]
    if sibling is not None and tensor.name.endswith(".bias"):
        ways = [replace(tensor, order=sibling.order)]
    else:
        ways += [replace(way, order=order) for way in ways for order in _orders(template, tensor.name, info.shape[0])]

    there = torch.from_numpy(template.dequantize(info.name)).reshape(-1)
    best, error = tensor, float("inf")
    for way in ways:
        ours = way.float_weight(folder).to(torch.float32)
        size = max(float(there.norm()), float(ours.norm()))
        wrong = float((ours - there).norm()) / size if size else 0.0
        if wrong < error / 2:  # the plain way, unless another is clearly nearer
            best, error = way, wrong

    if not error <= ERROR:
        raise TemplateError(
            f"{tensor.tensor} is not {tensor.name} of template {template.path} (relative difference "
            f"{error:.2g}): it is of another base, or llama.cpp keeps this tensor in another form"
        )
    return best


def _other_shape(template: GGUFFile, tensor: PlacedTensor, info: TensorInfo, shape: tuple[int, ...]) -> TemplateError:
    return TemplateError(
        f"{tensor.name} is {info.shape} in template {template.path}, {tensor.tensor} {shape} in the model: "
        f"give a file of the same base"
    )


def _ways(template: GGUFFile, tensor: PlacedTensor, info: TensorInfo) -> Iterator[PlacedTensor]:
    """In which a converter may have put the tensor."""
    yield tensor
    if tensor.module is None and len(info.shape) == 2:
        yield replace(tensor, transposed=True)
    yield from (replace(tensor, order=order) for order in _orders(template, tensor.name, info.shape[0]))


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


def _some_rows(weight: Tensor | QuantizedWeight, way: PlacedTensor, rows: Tensor) -> Tensor:
    """float32 [rows, in] of the model's tensor put that way."""
    picked = rows if way.order is None else way.order[rows]
    if isinstance(weight, QuantizedWeight):
        return weight.take(picked).dequantize()
    return (weight.t() if way.transposed else weight)[picked].to(torch.float32)


def _likeness(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """(cosine, factor) of our kept weights against the same ones of the template; (0, 0) where none is kept or one is
    no number."""
    ours, theirs = ours.to(torch.float64), theirs.to(torch.float64) * nonzero_mask(ours)
    dot, own, their = float((ours * theirs).sum()), float(ours.square().sum()), float(theirs.square().sum())
    if not (own > 0 and 0 < their < float("inf")):
        return 0.0, 0.0
    return dot / (own * their) ** 0.5, dot / their
