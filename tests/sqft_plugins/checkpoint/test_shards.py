"""A safetensors file that is filled in any order."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sqft_plugins.checkpoint.shards import DTYPES, ShardFile, TensorSpec


def test_a_shard_has_the_bytes_that_the_library_writes(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.0), "é": torch.ones(2, dtype=torch.bfloat16)}
    for dtype, name in DTYPES.items():
        tensors[f"x.{name}"] = torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        tensors[f"a.{name}"] = torch.randint(0, 2, (2,), generator=generator).to(dtype)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    for name in reversed(tensors):
        ShardFile(tmp_path / "ours", specs).write(name, tensors[name])  # opened anew each time, it goes on
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with pytest.raises(ValueError, match="laid out as"):
        ShardFile(tmp_path / "ours", specs).write("scalar", torch.tensor([3.0]))
