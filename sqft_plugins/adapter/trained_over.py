"""Was an adapter trained over this base? By the hash of its masks, and where it is quantization-aware by its grid
stamp: the kind and the hashes of the grid, and of the codes under it (docs/reference/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sqft_plugins.checkpoint.int4 import combined_hash, digest_of
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import MismatchError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import mask_hash, pack_mask

KINDS = {
    "int4": "the dequantized codes of a quantized model",
    "float": "the float base beside its quantized model (grid='…')",
}
"""What a base is, as stamps have it since version 0.1: "int4" whatever the codes are."""


class GridHashes:
    """What a base with a grid is known by, gathered one adapted module after the other."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor] = {}
        self._scales: dict[str, str] = {}
        self._codes: dict[str, str] = {}
        self._kinds: set[str] = set()

    def add(self, module: str, mask: Tensor | None, weight: QuantizedWeight) -> None:
        """mask: bool [out, in]; None of a dense base, which has none. weight: the codes of the base alone, on its
        grid."""
        if mask is not None:
            self._masks[module] = pack_mask(mask)
        self._scales[module] = weight.grid.digest()
        self._kinds.add(weight.grid.kind.name)
        self._codes[module] = digest_of(weight.codes)

    @property
    def mask_hash(self) -> str:
        return mask_hash(self._masks)

    def grid_stamp(self, base: str, grid: GridStamp, dtype: str) -> dict[str, Any]:
        """As adapters store it (docs/reference/formats.md). base: one of `KINDS`. dtype: of its weights."""
        return {
            "base": base,
            "kind": "+".join(sorted(self._kinds)),
            "group_size": grid.group_size,
            "symmetric": grid.symmetric,
            "scale_hash": combined_hash(self._scales),
            "code_hash": combined_hash(self._codes),
            "dtype": dtype,
        }


def check_mask_hash(adapter: str, own: str | None, trained: str | None, found: str) -> None:
    """Raises MismatchError where an adapter was trained over other zeros.

    adapter: its name, for messages.
    own: the base that it remembers.
    trained: the hash of that base's masks (none: nothing to compare). found: of this base's.
    """
    if trained not in (None, found):
        raise MismatchError(
            f"adapter {adapter!r} was trained over a base with other zeros (mask {_short(trained)}, this base "
            f"{_short(found)}): load it on {own or 'its own base'}. A new adapter with the same settings has "
            "mask_hash=None and grid_stamp=None"
        )


def check_grid_stamp(
    adapter: str, own: str | None, trained: Mapping[str, Any], found: Mapping[str, Any], path: Path | str
) -> None:
    """Raises MismatchError where an adapter was trained over another base, or through another grid.

    adapter, own: as above.
    trained: the grid stamp of its configuration (docs/reference/formats.md). found: that of this base.
    path: the INT4 folder, for messages.
    """
    own = own or "its own base"
    if trained["base"] != found["base"]:
        raise MismatchError(
            f"adapter {adapter!r} was trained over {KINDS[trained['base']]}, this base is {KINDS[found['base']]}: "
            f"load it on {own}"
        )

    # the grid; stamps of version 0.1 have no kind
    kinds = trained.get("kind", "int4"), found.get("kind", "int4")
    if kinds[0] != kinds[1]:
        raise MismatchError(
            f"adapter {adapter!r} was trained through {kinds[0]} and {path} is {kinds[1]}: name its own model "
            "with grid='…'"
        )
    for key, what in (("group_size", "other groups"), ("symmetric", "another grid"), ("scale_hash", "other scales")):
        if trained[key] != found[key]:
            raise MismatchError(
                f"adapter {adapter!r} was trained through {what} ({key} {_short(trained[key])}, "
                f"{path} has {_short(found[key])}): name its own quantized folder with grid='…'"
            )

    # the base's own codes on it
    if trained["code_hash"] != found["code_hash"]:
        raise MismatchError(
            f"adapter {adapter!r} was trained over other weights ({trained['dtype']}, codes "
            f"{_short(trained['code_hash'])}; this base {found['dtype']}, {_short(found['code_hash'])}; a model that "
            f"was merged into has other codes, too): load it on {own} in its own dtype"
        )


def _short(value: object) -> str:
    return str(value)[:12]
