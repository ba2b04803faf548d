"""What a sample holds, as digests that fit into expected.json: each tensor through the project's own readers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FLOATS = ("_proj.weight", "norm.weight", "embed_tokens.weight")


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, its dtype and shape before them."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def tensors_in(file: Path) -> dict[str, str]:
    """Name → digest of a safetensors file."""
    with safe_open(file, framework="pt") as handle:
        return {name: digest(handle.get_tensor(name)) for name in sorted(handle.keys())}


def model_content(path: str) -> dict[str, Any]:
    """Of a model folder, through `ModelFolder`: masks, codes, scales, zero points and float tensors."""
    from sqft_plugins.checkpoint import ModelFolder

    folder = ModelFolder(path)
    parts: dict[str, Any] = {}
    for module in folder.int4.modules:
        own = folder.quantized(module)
        parts[module] = {name: digest(getattr(own, name)) for name in ("codes", "scale", "zero_point")}
    return {
        "stamp": folder.stamp.model_dump(mode="json") if folder.stamp else None,
        "masks": {name: digest(mask) for name, mask in folder.masks.items()},
        "int4": parts,
        "floats": {name: digest(folder.tensor(name)) for name in folder.tensor_names if name.endswith(FLOATS)},
    }


def gguf_content(file: Path) -> dict[str, str]:
    """Tensor name → SHA-256 of its bytes in the file, by the gguf package."""
    from gguf import GGUFReader

    return {tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16] for tensor in GGUFReader(file).tensors}
