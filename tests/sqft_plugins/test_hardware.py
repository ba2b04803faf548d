"""Where the machine computes fast, and what it says where a model does not fit there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import on_fast_device


def test_a_model_that_does_not_fit_is_told_in_one_line():
    class Large(nn.Linear):
        def to(self, *args, **kwargs):
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    with pytest.raises(SQFTError, match=r"does not fit on .*20 GiB.*CUDA_VISIBLE_DEVICES="):
        on_fast_device(Large(1, 1))
