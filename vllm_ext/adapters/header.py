"""What an adapter's file holds, by its header, and whether that is what its configuration says.

A file of another rank than its configuration's is served with another scaling, a tensor of a module that the
configuration does not name is served where PEFT would leave it out: both are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sqft_plugins.errors import CheckpointError
from sqft_plugins.lora import check_adapted, rank_of

PREFIX = "base_model.model."
PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""Ends of tensor names: of A [rank, in], and of its B [out, rank]."""
KEPT = ".base_layer.weight"

Header = tuple[dict[str, tuple[int, int, int]], list[str], dict[str, str]]


def read_header(file: Path, config: Mapping[str, Any]) -> Header:
    """{module: (rank, in, out)} of the adapted layers, embeddings among them (in: the vocabulary); names of the tensors
    of no linear layer; {adapted module: the tensor with the base's weight that PEFT saved along}.

    Raises CheckpointError for a file that is cut off (safetensors itself refuses one that is shorter than its header
    says), without tensors, or at odds with its configuration.
    """
    name = file.parent.name
    shapes = _shapes(file, name)
    modules: dict[str, tuple[int, int, int]] = {}
    paired: set[str] = set()
    for key, (module, end) in _halves(shapes).items():
        other = key.removesuffix(end) + PAIRS[end]
        A, B = shapes[key], shapes.get(other, ())
        if len(A) != 2 or len(B) != 2 or A[0] != B[1] or not math.prod(A) * math.prod(B):
            raise CheckpointError(f"adapter {name}: A {A} and B {B} of {module} do not belong together: copy it again")
        if module in modules:
            raise CheckpointError(f"adapter {name} holds {module} twice: copy it again")
        _check(module, A[0], config, name)
        modules[module] = (A[0], A[1], B[0])
        paired |= {key, other}
    lone = next((key for key in shapes if key not in paired and key.endswith(tuple(PAIRS.values()))), None)
    if lone is not None:
        raise CheckpointError(f"adapter {name} holds {lone} without its A: copy it again")
    if not modules:
        raise CheckpointError(f"adapter {name} holds no lora_A and lora_B: save it with save_pretrained")
    kept = {module: found for module in modules if (found := _key(f"{module}{KEPT}", shapes)) is not None}
    linears = {key for key in paired if ".lora_embedding_" not in key}
    return modules, sorted(shapes.keys() - linears - set(kept.values())), kept


def _shapes(file: Path, name: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in sorted(handle.keys())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file.name} of adapter {name} is missing, damaged or cut off ({error}): copy the adapter again"
        ) from error


def _halves(shapes: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name of each A → (its module, how the name ends)."""
    return {
        key: (key.removeprefix(PREFIX).removesuffix(end), end) for key in shapes for end in PAIRS if key.endswith(end)
    }


def _check(module: str, rank: int, config: Mapping[str, Any], name: str) -> None:
    if config.get("target_parameters") and ".experts" in module:  # all experts in one tensor, [experts * rank, in]
        return
    wanted = rank_of(config, module)
    if rank != wanted:
        raise CheckpointError(
            f"adapter {name}: {module} has rank {rank} in its tensors and {wanted} in adapter_config.json, which makes "
            "another scaling: copy the whole adapter again"
        )
    check_adapted(config, module, name)


def _key(name: str, shapes: Mapping[str, Any]) -> str | None:
    return next((key for key in (f"{PREFIX}{name}", name) if key in shapes), None)
