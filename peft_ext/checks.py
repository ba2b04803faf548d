"""Refusals that need a look at the whole model, or at several adapters at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sqft_plugins.errors import SQFTError

_MAMBA = ("x_proj", "dt_proj", "out_proj")
_MAMBA2 = ("out_proj",)
READ_AS_TENSORS = {
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "jamba": ("dt_proj",),
    "mamba2": _MAMBA2,
    "bamba": _MAMBA2,
    "falcon_h1": _MAMBA2,
    "granitemoehybrid": _MAMBA2,
    "nemotron_h": _MAMBA2,
    "zamba2": _MAMBA2,
}
"""model_type → linears of transformers' Mamba blocks whose `weight` the block reads itself, always or where its kernels
are installed: an adapter there would do nothing until it is merged."""


def check_is_called(model: nn.Module, name: str) -> None:
    """Raises SQFTError for a linear of a Mamba block that is not called as a module; `name` is its last name. PEFT has
    the check for its own adapter types, out_proj only (peft/tuners/tuners_utils.py, _check_lora_target_modules_mamba).
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    read = READ_AS_TENSORS.get(kind, ()) if isinstance(kind, str) else ()
    if name in read:
        raise SQFTError(
            f"target_modules matches {name}: {kind} reads that weight itself, past any adapter, leave it out with "
            f"exclude_modules={list(read)}"
        )


def check_combination(configs: Mapping[str, Any], layers: Iterable[tuple[str, Any]]) -> None:
    """Raises SQFTError for adapters that `add_weighted_adapter` cannot combine. configs: adapter → SQFTConfig."""
    names = list(configs)
    if len({config.sparse for config in configs.values()}) > 1:
        raise SQFTError(f"adapters {names} are masked and dense ones: combine adapters with the same `sparse`")
    for _, layer in layers:
        for name in names:
            state = layer.elastic.get(name)
            if state is not None and state.chosen != max(state.rank_choices):
                raise SQFTError(
                    f"adapter {name!r} is at rank {state.chosen}, and a combination takes the whole of it: "
                    f"run set_active_rank('max', {name!r}) first, or combine extracted sub-adapters"
                )
