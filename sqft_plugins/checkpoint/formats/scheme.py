"""The one scheme of a compressed-tensors folder: what `config_groups` says of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.errors import CheckpointError


def one_scheme(path: Path, settings: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """The `weights` of all config groups, which must be the same. wanted: what the format has, for messages. Raises
    CheckpointError, also for a folder whose runtime rotates the inputs of its layers (QuIP, SpinQuant): its weights are
    not those of the model that is trained."""
    if settings.get("transform_config"):
        raise CheckpointError(
            f"{path}/config.json: quantization_config has a transform_config, rotations that the runtime computes "
            "beside the weights and this project does not: give a model that was quantized without"
        )
    try:
        weights = [dict(group["weights"]) for group in settings["config_groups"].values()]
    except (KeyError, TypeError, AttributeError, ValueError):
        weights = []
    if not weights or not {"strategy", "num_bits"} <= weights[0].keys():
        raise CheckpointError(f"{path}/config.json: quantization_config has no weight groups: copy it again")
    if any(other != weights[0] for other in weights):
        raise CheckpointError(f"model {path} mixes grids, {wanted} is read of one grid: quantize it again")
    return weights[0]
