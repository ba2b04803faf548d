"""The steps of a recovery: Adam on the kept weights, with a gradient of 0 where the mask prunes.

An Adam step of a weight whose gradients were all 0 is 0, so that pruned weights stay exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.errors import SQFTError
from sqft_plugins.recover.divergence import divergence
from sqft_plugins.structure import is_conv1d, weight_of

WARM_UP = 10
BETAS = (0.9, 0.98)
MOMENTS = ("exp_avg", "exp_avg_sq")
"""As torch's Adam calls them in its state."""
LARGEST_GRADIENT = 1.0
"""Norm over all weights, above which a gradient is scaled down."""


class Learner:
    """The kept weights of a model that learns, and where Adam is.

    masks: module name → bool [out, in]. dtype: of the products; the weights that learn are float32.
    """

    def __init__(self, model: Any, dense: Any, masks: Mapping[str, Tensor], dtype: torch.dtype):
        self.model, self.dense, self.dtype = model, dense.eval(), dtype
        model.eval().requires_grad_(False)  # no dropout: the dense model predicts without
        self.weights: dict[str, nn.Parameter] = {}
        for name, mask in masks.items():
            module = model.get_submodule(name)
            mask = mask.t() if is_conv1d(module) else mask
            module.weight = weight = nn.Parameter(module.weight.detach().float())
            weight.register_post_accumulate_grad_hook(_masking(mask.to(weight.device)))
            self.weights[name] = weight
        self.adam = torch.optim.Adam(self.weights.values(), betas=BETAS, foreach=False)

    def weight(self, module: str) -> Tensor:
        """float32 [out, in]."""
        return weight_of(self.model.get_submodule(module))

    def divergence(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(next(iter(self.weights.values())).device)
        with torch.autocast(tokens.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return divergence(self.model, self.dense, tokens)

    def step(self, tokens: Tensor, learning_rate: float) -> float:
        """One step on a batch [sequences, length] → its divergence before. Raises SQFTError for one that is
        not finite."""
        loss = self.divergence(tokens)
        if not bool(loss.isfinite()):
            raise SQFTError(f"the divergence is {float(loss)}: give a smaller --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), LARGEST_GRADIENT)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad()
        return float(loss.detach())

    def state(self) -> list[Tensor]:
        """Weights, and Adam's two moments of each."""
        moments = [self.adam.state[weight][name] for weight in self.weights.values() for name in MOMENTS]
        return [*(weight.detach() for weight in self.weights.values()), *moments]

    @torch.no_grad()
    def restore(self, state: list[Tensor], step: int) -> None:
        """step: after which the state was taken."""
        weights, moments = state[: len(self.weights)], state[len(self.weights) :]
        for index, (weight, saved) in enumerate(zip(self.weights.values(), weights, strict=True)):
            weight.copy_(saved)
            pair = (moment.to(weight.device) for moment in moments[2 * index : 2 * index + 2])
            self.adam.state[weight] = {"step": torch.tensor(float(step)), **dict(zip(MOMENTS, pair, strict=True))}


def rate_at(step: int, steps: int, largest: float) -> float:
    """The learning rate of a step, counted from 0: a rise of `WARM_UP` steps, times a cosine that falls to 0."""
    return largest * min((step + 1) / WARM_UP, 1.0) * (1 + math.cos(math.pi * step / steps)) / 2


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(mask)

    return hook
