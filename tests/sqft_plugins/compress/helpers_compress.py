"""A small calibration, as options and as tokens."""

from __future__ import annotations

import torch

SMALL = {"sequences": 4, "length": 32}


def tokens(sequences: int = 4, length: int = 32) -> torch.Tensor:
    return torch.randint(4, 640, (sequences, length), generator=torch.Generator().manual_seed(0))
