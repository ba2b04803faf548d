"""What a method is told of a layer's inputs."""

from __future__ import annotations

import torch

from sqft_plugins.compress.statistic import InputStatistic


def test_statistics():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rows = x.float().reshape(6, 5)
    for kind, expected in {"norm": rows.norm(dim=0), "hessian": rows.T @ rows}.items():
        statistic = InputStatistic(kind)
        for part in x:  # one after the other
            statistic.add(part)
        torch.testing.assert_close(statistic.value(), expected)
