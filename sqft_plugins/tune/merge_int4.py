"""Merging a quantization-aware adapter: INT4 in, INT4 out, the same scales, zero points and mask; other codes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint import ModelFolder, Stamp, load_model, load_tokenizer, write_folder
from sqft_plugins.checkpoint.recode import check_recodable, write_codes
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import mask_hash, unpack_mask
from sqft_plugins.plugins.protocols import Tuner
from sqft_plugins.progress import say
from sqft_plugins.tune.adapters import choose_rank, copy_template

FEW = 1e-3
"""A merge that changes fewer of the kept codes than this is said to have changed nothing."""
SUMMATION = 1e-3
"""Of the largest logit: more than float32 sums in another order make (2e-6 seen), less than a weight that is lost."""


def merge_quantized(
    base: ModelFolder,
    int4: ModelFolder,
    adapter: Path,
    tuner: Tuner,
    out: Path,
    rank: Rank,
    overwrite: bool,
    probe: str,
) -> dict[str, Any]:
    """Writes the INT4 folder with the adapter merged in at `rank`.

    base: what the adapter was trained over, `int4` itself or the float model that it was made from. The result is
    checked as it lies on the disk: `max_logit_difference` is between the forward pass of training and the reloaded
    folder, in float32, on the text `probe`; `zeros_lost` counts pruned weights that are not zero, `codes_changed` is
    the fraction of kept codes that the adapter has moved. Raises MismatchError for an adapter of another base.
    """
    check_recodable(int4)
    tokens = load_tokenizer(base.path)(probe, return_tensors="pt").input_ids
    with write_folder(out, overwrite) as folder:
        start = time.monotonic()
        given = None if int4.path == base.path else int4.path
        tuned = tuner.load(load_model(base.path, dtype=torch.float32), adapter, given)
        ranks = tuner.set_rank(tuned, choose_rank(rank, tuner, adapter))
        # with gradients on, the layers take the path of training, not the weight that evaluation keeps
        with torch.enable_grad():
            unmerged = tuned(input_ids=tokens).logits.detach()
        merged, plain = tuner.quantized(tuned), tuner.quantized(tuned, merged=False)
        changed = codes_changed(merged, plain, int4.masks)
        del tuned, plain
        write_codes(int4, folder, {m: q.codes for m, q in merged.items()}, _stamp(int4, tuner.name, ranks))
        copy_template(adapter, folder)
        write_model_card(folder)
        lost = _check(ModelFolder(folder), merged)
        with torch.no_grad():
            reloaded = load_model(folder, dtype=torch.float32)(input_ids=tokens).logits
        difference, size = float((reloaded - unmerged).abs().max()), float(unmerged.abs().max())
        if not difference <= SUMMATION * size:
            raise SQFTError(
                f"the merged folder computes other logits than the adapter did (by {difference:.2g} of {size:.2g}): "
                "one that trains more than linear layers (modules_to_save) cannot be merged into INT4, keep it unmerged"
            )
        if changed < FEW:
            say(f"{adapter} changes {changed:.3%} of the kept codes: it was hardly trained, or too gently")
        return {
            "out": str(out),
            "base": str(base.path),
            "int4": str(int4.path),
            "adapter": str(adapter),
            "rank": rank,
            "max_logit_difference": difference,
            "zeros_lost": lost,
            "codes_changed": changed,
            "modules": len(merged),
            "seconds": time.monotonic() - start,
        }


def codes_changed(
    merged: Mapping[str, QuantizedWeight], plain: Mapping[str, QuantizedWeight], packed_masks: Mapping[str, Tensor]
) -> float:
    """The fraction of kept codes that differ; packed_masks: module → packed mask (all kept where it has none)."""
    different = kept = 0
    for module, weight in merged.items():
        different += int((weight.codes != plain[module].codes).sum())
        packed = packed_masks.get(module)
        width = weight.codes.shape[1]
        kept += weight.codes.numel() if packed is None else int(unpack_mask(packed, width).sum())
    return different / max(kept, 1)


def _stamp(int4: ModelFolder, tuner: str, ranks: Mapping[str, int]) -> Stamp:
    step = f"{tuner}-qa-merge"
    if int4.stamp is not None:
        return int4.stamp.then(step, base=str(int4.path), ranks=dict(ranks))
    raise SQFTError(
        f"model {int4.path} has no stamp (sqft/stamp.json), so what is merged could not be checked later: "
        "make it with `sqft quantize`"
    )


def _check(folder: ModelFolder, merged: Mapping[str, QuantizedWeight]) -> int:
    """Pruned weights that are not zero in the folder. Raises SQFTError where it does not hold the merged codes."""
    lost = 0
    for module, weight in merged.items():
        stored = folder.quantized(module)
        if not all(torch.equal(mine, theirs.cpu()) for mine, theirs in zip(stored, weight, strict=True)):
            raise SQFTError(f"{module} in {folder.path} is not what was merged: the disk or the writer is broken")
        mask = folder.mask(module)
        if mask is not None:
            lost += stored.lost_zeros(mask)
    if lost:
        raise SQFTError(f"the merge turned {lost} pruned weights on: report this, the base was not changed")
    assert folder.stamp is not None
    if mask_hash(folder.masks) != folder.stamp.mask_hash:
        raise SQFTError(f"the mask in {folder.path} does not belong to its stamp: the disk or the writer is broken")
    return lost
