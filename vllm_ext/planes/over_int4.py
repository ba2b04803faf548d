"""The codes of an adapter that was trained over the served INT4 folder itself, from its tensors and the folder's codes.

One module at a time, by the formula of the merge (sqft_plugins/requantize.py). No model is built, and neither PEFT nor
transformers is imported: a server that is asked for a rank for the first time need not wait for them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.adapter.initialisations import CONVERT, is_repeated
from sqft_plugins.adapter.saved import choose_rank
from sqft_plugins.adapter.settled import merged_codes
from sqft_plugins.adapter.trained_over import GridHashes, check_grid_stamp, check_mask_hash
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.recode import Recoded
from sqft_plugins.elastic import Rank, configuration
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.layer_grid import LayerGrid


def trained_over(folder: AdapterFolder) -> str | None:
    """ "int4" where an adapter was trained over the dequantized codes, "float" where over the float base."""
    return "float" if folder.config.get("grid") else (folder.grid_stamp or {}).get("base")


class OverInt4:
    """Raises MismatchError for an adapter that was trained over another folder."""

    def __init__(self, int4: ModelFolder, folder: AdapterFolder):
        self.int4, self.folder = int4, folder
        init = folder.config.get("init_lora_weights", True)
        if not is_repeated(init):
            raise SQFTError(
                f"adapter {folder.name} has init_lora_weights={init!r}, which changed the base weight as loading does "
                f"not repeat: {CONVERT}"
            )
        self._check_base()

    def ranks(self, rank: Rank) -> dict[str, int]:
        """Module → rank, of what `--rank` says."""
        pairs, fixed = self.folder.pairs, not self.folder.is_elastic
        own = {module: pair.rank for module, pair in pairs.items()}
        rank = choose_rank(rank, self.folder.path, lambda: (self.folder.linears, self.folder.rank_choices))
        if fixed and isinstance(rank, str):
            return own

        found = configuration(rank, pairs, sorted(set(own.values())) if fixed else self.folder.rank_choices)
        if fixed and found != own:
            raise SQFTError(f"adapter {self.folder.name} has a fixed rank, which cannot be set: leave --rank out")
        return found

    def plain(self) -> ModelFolder:
        """The INT4 folder with the codes of the base alone."""
        return self.int4

    def merged(self, ranks: Mapping[str, int]) -> Recoded:
        """The INT4 folder with the adapter at these ranks."""
        codes = {}
        for pair, A, B in self.folder.read_pairs(ranks):
            stored, mask = self._stored(pair.module)
            weight, grid = stored.dequantize(torch.float32), LayerGrid(stored.grid, mask, True)
            codes[pair.module] = merged_codes(self.folder, pair.module, weight, A, B, grid)
        return Recoded(self.int4, codes)

    def _stored(self, module: str) -> tuple[QuantizedWeight, Tensor]:
        """The INT4 weight of a module, and its mask."""
        if not self.int4.is_quantized(module):
            raise MismatchError(
                f"adapter {self.folder.name} adapts {module}, which is not quantized in {self.int4.path}: it is an "
                "adapter for another base"
            )
        return self.int4.quantized(module), self.int4.kept(module)

    def _check_base(self) -> None:
        folder, hashes = self.folder, GridHashes()
        assert folder.grid_stamp is not None
        for module in folder.pairs:
            stored, mask = self._stored(module)
            hashes.add(module, mask, stored)

        found = hashes.grid_stamp("int4", self.int4.int4.grid, "INT4")
        check_mask_hash(folder.name, folder.base, folder.mask_hash, hashes.mask_hash)
        check_grid_stamp(folder.name, folder.base, folder.grid_stamp, found, self.int4.path)
