"""The dtype that a base is trained in."""

from __future__ import annotations

import torch

from sqft_plugins.checkpoint import ModelFile, ModelFolder
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype


def choose_dtype(base: ModelFolder, exact: bool, asked: str = "auto") -> tuple[torch.dtype, str]:
    """The dtype of the base, and why: as `asked`, or with "auto" the one that is fast here.

    exact: the adapter is quantization-aware, so that codes are made of the weights: rounding these would train another
    model than the one merged into. Then "auto" is float32 where the fast one would change a code. Raises SQFTError
    where `asked` would.
    """
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        if exact and not _keeps_codes(base, dtype):
            raise SQFTError(
                f"dtype={asked} would round the weights of which --quantization-aware makes codes, and tune another "
                "model than the one merged into: use auto or float32"
            )
        return dtype, "as asked"

    dtype = fast_dtype()
    if exact and not _keeps_codes(base, dtype):
        return torch.float32, f"{str(dtype).removeprefix('torch.')} would round the weights of which the codes are made"
    return dtype, "fast on this machine" if dtype == torch.bfloat16 else "bfloat16 would not be faster on this machine"


def _keeps_codes(base: ModelFolder, dtype: torch.dtype) -> bool:
    """Whether the codes are the same in this dtype."""
    if isinstance(base, ModelFile):
        return base.holds_codes_in(dtype)
    return base.grid is not None or _holds(base, dtype)


def _holds(base: ModelFolder, dtype: torch.dtype) -> bool:
    stored = {base.spec(name).dtype for name in base.files}
    return all(torch.promote_types(kind, dtype) == dtype for kind in stored if kind.is_floating_point)
