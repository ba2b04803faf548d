"""Merging an adapter into its base: the zeros stay, and it is checked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint import (
    ModelFile,
    ModelFolder,
    Stamp,
    copy_side_files,
    load_model,
    load_tokenizer,
    open_model,
    save_model,
    write_folder,
    write_sidecar,
)
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.stamp import remove_flag
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.mask import lost_zeros, mask_hash, pack_mask, sparsity_of
from sqft_plugins.progress import say
from sqft_plugins.structure import weight_of
from sqft_plugins.tune.merge_file import merge_into_file
from sqft_plugins.tune.merge_int4 import merge_quantized
from sqft_plugins.tune.merge_report import MergeReport, Probe


def merge_folder(
    model_path: str | Path,
    adapter: str | Path,
    out: str | Path,
    rank: Rank = "heuristic",
    overwrite: bool = False,
    grid: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> dict[str, Any]:
    """Writes the base with an adapter merged in → the fields of `MergeReport`.

    model_path: the base that the adapter was trained over.
    adapter: an adapter folder; a masked one keeps every zero, a quantization-aware one the INT4 grid as well.
    out: the new folder, in the dtypes of the base; INT4 again for a quantization-aware adapter (`merge_quantized`). Of
        a model that is a file, the new file (`merge_into_file`).
    rank: "heuristic", "max", a number, a saved configuration's name, or module → rank.
    grid: the INT4 folder of a quantization-aware adapter over a float base, where it was moved.
    tokenizer: a folder with the tokenizer of a file from which none can be made.

    Raises MismatchError for an adapter of another base, and SQFTError for an adapter that INT4 would lose.
    """
    # everything that can be refused before a weight is loaded
    base, saved = open_model(model_path), SavedAdapter(adapter)
    int4 = saved.grid_over(base.path)
    if int4 is not None:
        found = base if isinstance(base, ModelFile) else open_model(local_folder(grid or int4))
        if isinstance(found, ModelFile):
            named = tokenizer or base.path
            return merge_into_file(found, base, saved, out, rank, partial(load_tokenizer, named), overwrite)
        if found.grid is None:
            raise MismatchError(
                f"model {found.path} is float, but {adapter} was trained through a grid: merge into the quantized "
                "folder that it was trained over, or name that with --grid"
            )
        return merge_quantized(base, found, saved, out, rank, overwrite)
    if grid is not None:
        raise SQFTError(f"--grid {grid} is for a quantization-aware adapter, {adapter} is not: leave it out")
    if base.grid is not None:
        raise SQFTError(
            f"model {model_path} is {base.grid.label} and {adapter} is not quantization-aware: rounded to the grid a "
            "small delta is lost, and a dense one fills the zeros. Keep it unmerged, merge into the float base and "
            "quantize again, or train with --quantization-aware"
        )

    probed = load_tokenizer(model_path)
    with write_folder(out, overwrite) as folder:
        # merge in float32, and compare with what was trained
        start = time.monotonic()
        tuned, ranks = saved.load(load_model(model_path, dtype=torch.float32), rank)
        probe = Probe(probed, tuned)
        merged, masks = saved.tuner.merge(tuned)
        difference = probe.difference(merged)

        # count the zeros while the weights are still float32
        weights = dict(merged.named_modules())
        lost = _count_lost(weights, masks.items())
        if masks and lost:
            raise SQFTError(
                f"adapter {adapter}: the merge turned {lost} pruned weights on: report this, the base was not changed"
            )

        # write weights, tokenizer and template
        _cast_as_stored(merged, base)
        save_model(merged, folder, max_shard_size=max(file.stat().st_size for file in base.files.values()))
        copy_side_files(base, folder)  # the tokenizer as it is, byte for byte
        saved.copy_chat_template(folder)

        # mask and stamp, which a model with filled zeros does not get
        if masks:
            packed = base.masks or {name: pack_mask(mask) for name, mask in masks.items()}
            before = base.stamp or Stamp(
                pipeline=[], base=str(model_path), sparsity=sparsity_of(*masks.values()), mask_hash=mask_hash(packed)
            )
            write_sidecar(folder, before.then(f"{saved.tuner.name}-merge", ranks=dict(ranks)), packed)
        else:
            lost = _count_lost(weights, ((name, base.mask(name)) for name in base.masks))
            remove_flag(folder)
            say(
                f"{adapter} is not masked: {lost:,} zeros of the base are gone, so the result gets no mask and no stamp"
            )
        write_model_card(folder)

        report = MergeReport(
            out=str(out),
            base=str(model_path),
            adapter=str(adapter),
            rank=rank,
            max_logit_difference=difference,
            zeros_lost=lost,
            modules=len(ranks),
            seconds=time.monotonic() - start,
        )
        return report.as_dict()


def _count_lost(weights: Mapping[str, Any], masks: Iterable[tuple[str, torch.Tensor | None]]) -> int:
    """Weights that a mask prunes and that are not zero."""
    return sum(lost_zeros(weight_of(weights[name]), mask) for name, mask in masks if mask is not None)


def _cast_as_stored(model: Any, base: ModelFolder) -> None:
    """Gives every tensor the dtype that it has in the base, where norms may have another than the rest; what only the
    adapter has (modules_to_save) gets that of the embedding."""
    tensors = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in base.files}}

    # a tied tensor is stored under one of its names
    stored: dict[int, torch.dtype] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *tensors.items()]:
        if base.own_name(name) in base.files:
            stored.setdefault(id(tensor), base.spec(base.own_name(name)).dtype)

    embedding = stored[id(model.get_input_embeddings().weight)]
    for tensor in tensors.values():
        tensor.data = tensor.data.to(stored.get(id(tensor), embedding))
