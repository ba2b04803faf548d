"""What a pruner or quantizer wants to know of a linear layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.plugins.protocols import Statistic


class InputStatistic:
    """Sums over the inputs of a layer, one batch after the other, in float32."""

    def __init__(self, kind: Statistic):
        self.kind = kind
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """x: [..., in]."""
        rows = x.detach().flatten(0, -2).to(torch.float32)  # [tokens, in]
        if self.kind == "norm":
            new = rows.square().sum(0)  # [in]
            self._sum = new if self._sum is None else self._sum.add_(new)
        elif self._sum is None:
            self._sum = rows.t() @ rows  # [in, in]
        else:
            self._sum.addmm_(rows.t(), rows)

    def add_sum(self, other: InputStatistic) -> None:
        """What another has seen, too."""
        assert other._sum is not None
        self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum)

    def mean(self, parts: int) -> InputStatistic:
        """The sums, divided by `parts`."""
        assert self._sum is not None
        made = InputStatistic(self.kind)
        made._sum = self._sum / parts
        return made

    def value(self) -> Tensor:
        """ "norm": ‖X‖ of each column [in]; "hessian": XᵀX [in, in]."""
        assert self._sum is not None
        return self._sum.sqrt() if self.kind == "norm" else self._sum
