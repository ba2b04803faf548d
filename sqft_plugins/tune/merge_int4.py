"""Merging a quantization-aware adapter: INT4 in, INT4 out, the same scales, zero points and mask; other codes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint import ModelFolder, Stamp, load_model, load_tokenizer, write_folder
from sqft_plugins.checkpoint.recode import Recoded, write_codes
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import SQFTError
from sqft_plugins.mask import mask_hash
from sqft_plugins.requantize import codes_changed, say_if_hardly_trained
from sqft_plugins.tune.merge_report import SUMMATION, MergeReport, Probe


def merge_quantized(
    base: ModelFolder, int4: ModelFolder, saved: SavedAdapter, out: str | Path, rank: Rank, overwrite: bool
) -> dict[str, Any]:
    """Writes the INT4 folder with a quantization-aware adapter merged in, and checks it as it lies on the disk → the
    fields of `MergeReport`.

    base: what the adapter was trained over, `int4` itself or the float model that it was made from.
    int4: the folder whose scales, zero points and masks stay.
    rank: as for `merge_folder`.

    Raises MismatchError for an adapter of another base, and SQFTError where the folder computes something else.
    """
    int4.int4.check_recodable()
    _check_lineage(int4, saved)
    tokenizer = load_tokenizer(base.path)
    with write_folder(out, overwrite) as folder:
        # the codes of the base with the adapter, and without it
        start = time.monotonic()
        given = None if int4.path == base.path else int4.path
        tuned, ranks = saved.load(load_model(base.path, dtype=torch.float32), rank, given)
        probe = Probe(tokenizer, tuned)
        merged = saved.recoded(int4, tuned)
        changed = codes_changed(merged, saved.recoded(int4, tuned, merged=False))
        del tuned

        # write
        write_codes(merged, folder, _stamp(int4, saved.tuner.name, ranks))
        saved.copy_chat_template(folder)
        write_model_card(folder)

        # check what lies on the disk
        lost = _check(ModelFolder(folder), merged)
        difference = probe.difference(load_model(folder, dtype=torch.float32))
        if not difference <= SUMMATION * probe.largest:
            raise SQFTError(
                f"the merged folder computes other logits than the adapter did (by {difference:.2g} of "
                f"{probe.largest:.2g}): one that trains more than linear layers (modules_to_save) cannot be merged "
                "onto a grid, keep it unmerged"
            )
        say_if_hardly_trained(saved.path, changed)

        report = MergeReport(
            out=str(out),
            base=str(base.path),
            adapter=str(saved),
            rank=rank,
            max_logit_difference=difference,
            zeros_lost=lost,
            modules=len(merged.codes),
            seconds=time.monotonic() - start,
            int4=str(int4.path),
            codes_changed=changed,
        )
        return report.as_dict()


def _check_lineage(int4: ModelFolder, saved: SavedAdapter) -> None:
    """Raises SQFTError for a masked adapter over a folder that does not say which weights are pruned."""
    if int4.stamp is None and saved.folder.is_masked:
        raise SQFTError(
            f"model {int4.path} has no stamp (sqft/stamp.json), so what is merged could not be checked later: "
            "make it with `sqft quantize`, or train with sparse=False (--dense) where nothing was pruned"
        )


def _stamp(int4: ModelFolder, tuner: str, ranks: Mapping[str, int]) -> Stamp | None:
    if int4.stamp is None:
        return None
    return int4.stamp.then(f"{tuner}-qa-merge", base=str(int4.path), ranks=dict(ranks))


def _check(folder: ModelFolder, merged: Recoded) -> int:
    """Pruned weights that are not zero in the folder. Raises SQFTError where it does not hold the merged codes."""
    lost = 0
    for module in merged.codes:
        stored = folder.quantized(module)
        if not stored.equals(merged.quantized(module)):
            raise SQFTError(f"{module} in {folder.path} is not what was merged: the disk or the writer is broken")
        mask = folder.mask(module)
        if mask is not None:
            lost += stored.lost_zeros(mask)
    if lost:
        raise SQFTError(f"the merge turned {lost} pruned weights on: report this, the base was not changed")
    if folder.stamp is not None and mask_hash(folder.masks) != folder.stamp.mask_hash:
        raise SQFTError(f"the mask in {folder.path} does not belong to its stamp: the disk or the writer is broken")
    return lost
