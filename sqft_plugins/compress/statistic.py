"""What a pruner or quantizer wants to know of a linear layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.plugins.protocols import Statistic


def input_statistic(kind: Statistic, x: Tensor) -> Tensor | None:
    """x [..., in] → float32: "norm": the root of the sum of squares of each column [in]; "hessian": XᵀX [in, in];
    "none": None."""
    if kind == "none":
        return None
    rows = x.detach().flatten(0, -2).to(torch.float32)  # [tokens, in]
    if kind == "norm":
        return rows.square().sum(0).sqrt()
    return rows.t() @ rows
