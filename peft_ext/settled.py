"""The codes that an adapter with `rounding="compensated"` has settled to, kept with it as a patch of its base's codes.

They are made once, by `settle` (settle.py), from A, B and what the layer's inputs are like; nothing can make them again
from A and B alone. So a patch begins with a hash of the A, B and scaling that it was made from: after a training step,
or under other factors, it does not count any more.

In an adapter's file the patch of rank 16 is `….lora_codes.r16`, uint8 [bytes].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_ext.registry import BufferDict
from sqft_plugins.grid import apply_patch, make_patch

HASH_BYTES = 32


class SettledCodes(BufferDict):
    """Rank ("r16") → patch, of one adapter in one layer. A state dict brings whatever ranks it has."""

    def __init__(self) -> None:
        super().__init__(persistent=True)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def make_room(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Has a buffer for each of the patches that are to be loaded. prefix: of their names."""
        for key, tensor in state_dict.items():
            if key.startswith(prefix):
                self[key.removeprefix(prefix)] = torch.empty_like(tensor, device="cpu")

    def put(self, rank: int, made_of: bytes, base: Tensor, codes: Tensor, bits: int) -> None:
        """base, codes: uint8 [out, in], without and with the adapter. made_of: `hash_of` the factors."""
        patch = make_patch(base, codes, bits)
        self[_name(rank)] = torch.cat([torch.frombuffer(bytearray(made_of), dtype=torch.uint8), patch.cpu()])

    def has(self, rank: int) -> bool:
        return _name(rank) in self

    def made_of(self, rank: int) -> bytes:
        """The hash of the factors that the codes of this rank were made from."""
        return bytes(self[_name(rank)][:HASH_BYTES].tolist())

    def codes(self, rank: int, base: Tensor, bits: int) -> Tensor:
        """uint8 [out, in], of the base's own codes `base`. Raises GridError for the patch of another weight."""
        return apply_patch(base, self[_name(rank)][HASH_BYTES:].to(base.device), bits)


def hash_of(A: Tensor, B: Tensor, scaling: float) -> bytes:
    """SHA-256 of A [r, in], B [out, r] and the scaling."""
    digest = hashlib.sha256(str(float(scaling)).encode())
    for factor in (A, B):
        digest.update(factor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.digest()


def _name(rank: int) -> str:
    return f"r{rank}"
