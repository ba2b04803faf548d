"""The dtype of the base, and why."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import dtypes


def test_the_dtype_is_chosen_with_a_reason(pruned, tiny_gemma, monkeypatch) -> None:
    float32, bfloat16 = ModelFolder(pruned), ModelFolder(tiny_gemma)
    monkeypatch.setattr(dtypes, "fast_dtype", lambda: torch.float32)
    assert dtypes.choose_dtype(bfloat16, False, "auto")[1] == "bfloat16 would not be faster on this machine"
    assert dtypes.choose_dtype(bfloat16, True, "bfloat16") == (torch.bfloat16, "as asked")
    monkeypatch.setattr(dtypes, "fast_dtype", lambda: torch.bfloat16)
    assert dtypes.choose_dtype(float32, False, "auto") == (torch.bfloat16, "fast on this machine")
    dtype, reason = dtypes.choose_dtype(float32, True, "auto")
    assert (dtype, reason) == (torch.float32, "bfloat16 would round the weights of which the codes are made")
    with pytest.raises(SQFTError, match=r"dtype=bfloat16 would round the weights .*: use auto or float32"):
        dtypes.choose_dtype(float32, True, "bfloat16")
