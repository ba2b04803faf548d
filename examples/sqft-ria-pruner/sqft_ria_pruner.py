"""RIA pruning (Relative Importance and Activations, ICLR 2024): a weight counts relative to its row and its column."""

from sqft_plugins import hookimpl

TINY = 1e-30
"""Keeps 0 / 0 away in a row or column that is all zero."""


class RIA:
    name = "ria"
    statistic = "norm"

    def prune(self, weight, statistic, pattern):
        """weight [out, in], statistic ‖X‖ [in] → pruned weight, mask; the lowest scores of each row or group go."""
        size = weight.abs().float()
        relative = size / size.sum(dim=1, keepdim=True).clamp_min(TINY) + size / size.sum(
            dim=0, keepdim=True
        ).clamp_min(TINY)
        mask = pattern.mask(relative * statistic.sqrt())
        return weight.masked_fill(~mask, 0), mask


@hookimpl
def sqft_pruners():
    return [RIA()]
