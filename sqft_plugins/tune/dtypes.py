"""The dtype that a base is trained in."""

from __future__ import annotations

import torch

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype


def choose_dtype(base: ModelFolder, exact: bool, asked: str = "auto") -> tuple[torch.dtype, str]:
    """The dtype of the base, and why: as `asked`, or with "auto" the one that is fast here. exact: its float weights
    must not be rounded; then "auto" is float32 where the fast one would. Raises SQFTError where `asked` would."""
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        if exact and not _holds(base, dtype):
            raise SQFTError(
                f"dtype={asked} would round the float weights of which --quantization-aware makes codes, and tune "
                "another model than the one merged into: use auto or float32"
            )
        return dtype, "as asked"

    dtype = fast_dtype()
    if exact and not _holds(base, dtype):
        return torch.float32, "bfloat16 would round the float weights of which the codes are made"
    return dtype, "fast on this machine" if dtype == torch.bfloat16 else "bfloat16 would not be faster on this machine"


def _holds(base: ModelFolder, dtype: torch.dtype) -> bool:
    stored = {base.spec(name).dtype for name in base.files}
    return all(torch.promote_types(kind, dtype) == dtype for kind in stored if kind.is_floating_point)
