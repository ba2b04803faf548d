"""The codes that an adapter with `rounding="compensated"` has settled to, on its layers; settle.py makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.adapter.tensor_names import patch_name


class SettledCodes(nn.Module):
    """Rank → patch (sqft_plugins/adapter/settled.py), of one adapter in one layer. A state dict brings whatever ranks
    it has."""

    def make_room(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Has a buffer for each of the patches that are to be loaded. prefix: of their names."""
        for key, tensor in state_dict.items():
            if key.startswith(prefix):
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(tensor, device="cpu"))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def of_rank(self, rank: int) -> Tensor | None:
        return getattr(self, patch_name(rank), None)

    def put(self, rank: int, patch: Tensor) -> None:
        self.register_buffer(patch_name(rank), patch)

    @property
    def is_empty(self) -> bool:
        return not any(True for _ in self.buffers())
