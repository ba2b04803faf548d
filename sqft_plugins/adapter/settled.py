"""The codes that an adapter has settled to, as they lie in its file: a patch of its base's codes, one for each rank.

They are made once, by rounding with compensation (`rounding="compensated"`), from A, B and what the layer's inputs are
like; A and B alone do not give them again. So each patch begins with a hash of the A, B and scaling that it was made
from, and does not count under any others.

    ….lora_codes.r16    uint8 [bytes]: SHA-256, then what `sqft_plugins.grid.make_patch` makes
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sqft_plugins.grid import apply_patch, make_patch
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.requantize import requantized

if TYPE_CHECKING:
    from sqft_plugins.adapter.folder import AdapterFolder

HASH_BYTES = 32


def settled_patch(base: Tensor, codes: Tensor, bits: int, made_of: bytes) -> Tensor:
    """uint8 [bytes], on the CPU. base, codes: uint8 [out, in], without the adapter and with it. made_of: `hash_of` the
    factors."""
    return torch.cat([torch.tensor(list(made_of), dtype=torch.uint8), make_patch(base, codes, bits).cpu()])


def made_of(patch: Tensor) -> bytes:
    """The hash of the factors that the codes were made from."""
    return bytes(patch[:HASH_BYTES].tolist())


def settled_codes(patch: Tensor, base: Tensor, bits: int) -> Tensor:
    """uint8 [out, in], on the device of `base`, the codes without the adapter. Raises GridError for the patch of a
    weight of another size."""
    return apply_patch(base, patch[HASH_BYTES:].to(base.device), bits)


def merged_codes(folder: AdapterFolder, module: str, weight: Tensor, A: Tensor, B: Tensor, grid: LayerGrid) -> Tensor:
    """uint8 [out, in]: the codes of a module with a quantization-aware adapter merged in, at the rank of A [r, in] and
    B [out, r]. weight: W [out, in], of the base. Raises CheckpointError for a rank at which it has not settled."""
    if not folder.settles:
        return requantized(weight, A.float(), B.float(), folder.scaling(module), grid)
    return folder.settled(module, A, B, grid.quantize(weight), grid.grid.kind.bits)


def hash_of(A: Tensor, B: Tensor, scaling: float) -> bytes:
    """SHA-256 of A [r, in], B [out, r] and the scaling, in float32: alpha / r of a sub-adapter that was cut out may be
    another double."""
    digest = hashlib.sha256(struct.pack("<f", scaling))
    for factor in (A, B):
        digest.update(factor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.digest()
