"""A sparse tiny model for every test of the tuner."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import peft_ext  # noqa: F401  (registers the adapter type)

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path

from helpers_peft import sparsify


@pytest.fixture
def sparse_llama(tiny_model) -> Callable:
    """`sparse_llama()` → a new tiny Llama, half of its decoder's weights zero."""
    return lambda **changes: sparsify(tiny_model("llama", **changes))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(4, 600, (3, 12), generator=torch.Generator().manual_seed(3))
