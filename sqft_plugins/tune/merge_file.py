"""Merging a quantization-aware adapter into a model that is a file: the same file with other codes.

Nothing is loaded: one weight after the other is read, some rows at a time, W' is computed by the function of the
forward pass, and its codes are written. So a merge needs the memory of the codes of one weight, whatever the size of
the model.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.adapter.settled import merged_codes
from sqft_plugins.adapter.trained_over import GridHashes, check_grid_stamp, check_mask_hash
from sqft_plugins.checkpoint import ModelFile, ModelFolder, load_model, open_model
from sqft_plugins.checkpoint.files import make_folder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.int4 import digest_of
from sqft_plugins.elastic import Rank, configuration
from sqft_plugins.errors import SQFTError
from sqft_plugins.formula import BLOCK
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.progress import say, track
from sqft_plugins.requantize import say_if_hardly_trained
from sqft_plugins.tune.merge_report import SUMMATION, MergeReport, Probe

COPIES = 4
"""Models in float32 that a comparison of logits may need: with the adapter, merged, and while they are loaded."""


def merge_into_file(
    file: ModelFile,
    given: ModelFolder,
    saved: SavedAdapter,
    out: str | Path,
    rank: Rank,
    tokenizer: Callable[[], Any],
    overwrite: bool,
) -> dict[str, Any]:
    """Writes `file` with a quantization-aware adapter merged in → the fields of `MergeReport`. What is written is read
    back and compared, with its logits where the memory allows it.

    given: the model that the adapter is said to be over: `file` itself, or its float model. Of an adapter over a float
    model `file` will do, since the adapter remembers the other.
    rank: as for `merge_folder`.
    tokenizer: makes that of the comparison.

    Raises MismatchError for an adapter of another file or another base, and SQFTError where the new file computes
    something else.
    """
    start, out = time.monotonic(), Path(out)
    merge = FileMerge(file, base_of(file, given, saved), saved.folder, _ranks(saved, rank))
    note = {"adapter": str(saved), "adapter_hash": saved.folder.content_hash, "ranks": dict(merge.ranks)}
    file.check_merge(out, merge.ranks, note, overwrite)
    merge.check()

    make_folder(out.absolute().parent, out, "--out")
    target = out.resolve()  # a link stays, what it points to is replaced
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=target.parent) as place:
        written = open_model(file.write_codes(Path(place) / target.name, merge, note))
        lost = merge.check_written(written)
        difference = _difference(merge, saved, rank, tokenizer(), written) if _fits(file) else None
        file.publish(Path(place), target)

    changed = merge.different / max(merge.kept, 1)
    say_if_hardly_trained(saved.path, changed)
    report = MergeReport(
        out=str(out.with_name(written.path.name)),
        base=str(merge.base.path),
        adapter=str(saved),
        rank=rank,
        max_logit_difference=difference,
        zeros_lost=lost,
        modules=len(merge),
        seconds=time.monotonic() - start,
        int4=str(file.path),
        codes_changed=changed,
    )
    return report.as_dict()


class FileMerge(Mapping[str, Tensor]):
    """Module → its codes with the adapter merged in, uint8 [out, in], made when they are asked for.

    file: whose grids stay. base: what the adapter was trained over. ranks: module → rank.
    kept, different: of the modules that were asked for, how many weights may change, and how many have.
    """

    def __init__(self, file: ModelFile, base: ModelFolder, adapter: AdapterFolder, ranks: Mapping[str, int]):
        self.file, self.base, self.adapter, self.ranks = file, base, adapter, ranks
        self.kept = self.different = 0
        self._digests: dict[str, str] = {}

    def __getitem__(self, module: str) -> Tensor:
        ((_, A, B),) = self.adapter.read_pairs({module: self.ranks[module]})
        settled = self._settled(module, A, B) if self.adapter.settles else None
        codes = torch.empty(self.file.weight_shape(module), dtype=torch.uint8)
        for rows, stored, weight, grid in self._blocks(module):
            if settled is None:
                merged = merged_codes(self.adapter, module, weight, A, B[rows], grid)
            else:
                merged = settled[rows]
            codes[rows] = stored.grid.keep_same(merged, stored.codes)
            kept = None if grid.dense else (weight if grid.mask is None else grid.mask)
            self.kept += merged.numel() if kept is None else int(torch.count_nonzero(kept))
            self.different += int((codes[rows] != _plain(stored, weight, grid)).sum())
        self._digests[module] = digest_of(codes)
        return codes

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranks)

    def __len__(self) -> int:
        return len(self.ranks)

    def check(self) -> None:
        """Raises MismatchError where the adapter was trained over another base, or through another grid."""
        trained = self.adapter.grid_stamp
        if trained is None:
            return
        hashes = GridHashes()
        for module in track(list(self), "checking the base"):
            codes = torch.cat([_plain(stored, weight, grid) for _, stored, weight, grid in self._blocks(module)])
            mask = None if self.file.dense else self.file.kept(module)
            hashes.add(module, mask, self.file.quantized(module)._replace(codes=codes))
        found = hashes.grid_stamp(self._kind, self.file.int4.grid, str(trained["dtype"]))
        if trained["base"] == found["base"]:
            check_mask_hash(self.adapter.name, self.adapter.base, self.adapter.mask_hash, hashes.mask_hash)
        check_grid_stamp(self.adapter.name, self.adapter.base, trained, found, self.file.path)

    def check_written(self, written: ModelFolder) -> int:
        """Pruned weights that are not zero in the new file: none. Raises SQFTError where it does not hold these codes,
        on the grids of the old one."""
        lost = 0
        for module in track(list(self), "reading back"):
            new, old = written.quantized(module), self.file.quantized(module)
            if digest_of(new.codes) != self._digests[module] or new.grid.digest() != old.grid.digest():
                raise SQFTError(f"{module} in {written.path} is not what was merged: the disk or the writer is broken")
            if not self.file.dense:
                lost += new.lost_zeros(self.file.kept(module))
        if lost:
            raise SQFTError(f"the merge turned {lost} pruned weights on: report this, the base was not changed")
        return lost

    @property
    def _kind(self) -> str:
        return "int4" if self.base is self.file else "float"

    def _settled(self, module: str, A: Tensor, B: Tensor) -> Tensor:
        """The codes of an adapter that has settled, which are kept for a weight as a whole."""
        plain, bits = [], 0
        for _, _, weight, grid in self._blocks(module):
            plain.append(grid.quantize(weight))
            bits = grid.grid.kind.bits
        return self.adapter.settled(module, A, B, torch.cat(plain), bits)

    def _blocks(self, module: str) -> Iterator[tuple[slice, QuantizedWeight, Tensor, LayerGrid]]:
        """Some rows after the other: which, what is stored, the weight that the adapter changes, and the grid."""
        on_grid, dense = self.base is self.file, self.file.dense
        floats = None if on_grid else self.base.weight(module)
        mask = self.file.kept(module) if on_grid and not dense else None
        size, width = self.file.weight_shape(module)
        step = max(BLOCK // width, 1)
        for rows in (slice(start, start + step) for start in range(0, size, step)):
            stored = self.file.quantized_rows(module, rows)
            weight = stored.dequantize() if floats is None else floats[rows]
            yield rows, stored, weight, LayerGrid(stored.grid, None if mask is None else mask[rows], on_grid, dense)


def _plain(stored: QuantizedWeight, weight: Tensor, grid: LayerGrid) -> Tensor:
    """The codes of the base alone."""
    return stored.codes if grid.on_grid else grid.quantize(weight)


def base_of(file: ModelFile, given: ModelFolder, saved: SavedAdapter) -> ModelFolder:
    """What the adapter was trained over. Raises SQFTError for a float model that is not to be found."""
    over_float = (saved.folder.grid_stamp or {}).get("base") == "float"
    if not over_float or not isinstance(given, ModelFile):
        return file if isinstance(given, ModelFile) else given
    if saved.folder.base is None:
        raise SQFTError(f"{saved} was trained over a float model that it does not name: give that model in its place")
    return open_model(local_folder(saved.folder.base))


def _ranks(saved: SavedAdapter, rank: Rank) -> dict[str, int]:
    """Module → rank. Raises SQFTError for a rank outside the search space, and for an adapter of more than linear
    layers."""
    folder = saved.folder
    folder.check_config()
    if folder.others:
        raise SQFTError(
            f"adapter {saved} trains more than linear layers ({folder.others[0]}): a file of codes has no place for it"
        )
    for pair in folder.pairs.values():
        folder.check_pair(pair)
    if folder.is_elastic:
        return configuration(saved.choose_rank(rank), folder.linears, folder.rank_choices)
    return {module: folder.rank(module) for module in folder.linears}


def _fits(file: ModelFile) -> bool:
    """Whether there is memory to compare logits; if not, it says so."""
    needed = COPIES * 4 * sum(math.prod(file.spec(name).shape) for name in file.tensor_names)
    free = psutil.virtual_memory().available
    if needed > free:
        say(
            f"logits are not compared: that takes {needed >> 20} MiB, {free >> 20} MiB are free; the codes are compared"
        )
    return needed <= free


def _difference(merge: FileMerge, saved: SavedAdapter, rank: Rank, tokenizer: Any, written: ModelFolder) -> float:
    """The largest difference of a logit between the adapter over its base and the new file. Raises SQFTError for more
    than sums in another order make."""
    grid = None if merge.base is merge.file else merge.file.path
    tuned, _ = saved.load(load_model(merge.base.path, dtype=torch.float32), rank, grid)
    probe = Probe(tokenizer, tuned)
    del tuned
    found = probe.difference(load_model(written.path, dtype=torch.float32))
    if not found <= SUMMATION * probe.largest:
        raise SQFTError(
            f"the merged file computes other logits than the adapter did (by {found:.2g} of {probe.largest:.2g}): "
            "report this, the base was not changed"
        )
    return found
