"""The numbers of an adapter, before they are computed with.

One NaN in a forward pass stays in vLLM's cache, whose blocks other requests get next: they answer with nothing, and
with status 200. So an adapter is refused where it is loaded, by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.identity import while_unchanged
from sqft_plugins.lora import scaling_of
from vllm_ext.adapters.folder import WEIGHTS, AdapterFolder
from vllm_ext.adapters.header import KEPT, PREFIX


def check_values(folder: AdapterFolder, dtype: Any = None) -> None:
    """Raises CheckpointError for NaN and infinity, and SQFTError for numbers that `dtype`, in which they are served,
    does not hold; B is held with the scaling in it. dtype: torch's; anything else (vLLM's "auto") means float32."""
    name, dtype = folder.path.name, dtype if isinstance(dtype, torch.dtype) else torch.float32
    try:
        largest = largest_values(folder.path / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"adapter {name} was removed while it was read ({error})") from error
    for tensor, most in largest.items():
        if not math.isfinite(most):
            raise CheckpointError(
                f"adapter {name}: tensor {tensor} holds NaN or infinity, which would spoil the answers to others, too: "
                "train it again"
            )
        scale = 1.0
        if "lora_B" in tensor or "lora_embedding_B" in tensor:
            module = tensor.removeprefix(PREFIX).partition(".lora_")[0]
            scale = max(1.0, abs(scaling_of(folder.config, module)))
        if not _fits(most * scale, dtype):
            raise SQFTError(
                f"adapter {name}: tensor {tensor} reaches {most * scale:.3g} with its scaling, {dtype} ends at "
                f"{torch.finfo(dtype).max:.3g}: serve it in another dtype (-- --dtype bfloat16), or train it again"
            )


@while_unchanged
def largest_values(weights: Path) -> dict[str, float]:
    """Tensor → the largest absolute value, NaN where one is. Raises CheckpointError."""
    with _open(weights) as handle:
        read = ((name, handle.get_tensor(name)) for name in sorted(handle.keys()) if not name.endswith(KEPT))
        return {name: float(tensor.double().abs().max()) for name, tensor in read if tensor.numel()}


def open_weights(folder: AdapterFolder) -> Any:
    """The adapter's tensors, to be used in a `with`. Raises CheckpointError."""
    return _open(folder.path / WEIGHTS)


def _open(weights: Path) -> Any:
    try:
        return safe_open(weights, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights.name} of adapter {weights.parent.name} is damaged or gone ({error}): copy the adapter again"
        ) from error


def _fits(value: float, dtype: torch.dtype) -> bool:
    return bool(torch.tensor(value, dtype=torch.float64).to(dtype).isfinite())
