"""The inverse of a Hessian, factored: what GPTQ and SparseGPT weigh the errors with that they pass on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sqft_plugins.errors import GridError

T = TypeVar("T")
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a fraction of its mean (the paper's 1 %)."""


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """XᵀX [in, in] → U [in, in], float32, upper triangular with UᵀU = (XᵀX + damping)⁻¹.

    An input that is always zero gets a diagonal of one: its weights are rounded and compensate nothing.
    """
    damped = hessian.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    diagonal += torch.where(diagonal == 0, 1.0, damping * mean)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).to(torch.float32)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch documents it, and does not export it
        raise GridError(
            f"the inputs' Hessian cannot be inverted with damping={damping}: give more calibration text"
        ) from error


class FactorMemo(Generic[T]):
    """A function of a Hessian that remembers its last result: q, k and v see the same inputs, and a driver that hands
    out one tensor for all three has it inverted once.

    make: the function, such as `inverse_factor`.

    The tensor is known by identity and by its count of writes in place. It is not held, and when it goes, so does its
    factor.
    """

    def __init__(self, make: Callable[[Tensor], T]) -> None:
        self._make = make
        self._hessian: weakref.ref[Tensor] | None = None
        self._version = 0
        self._factor: T | None = None

    def __call__(self, hessian: Tensor) -> T:
        """XᵀX [in, in] → what `make` makes of it; callers must not write into it."""
        if hessian.is_inference():  # does not count its writes
            return self._make(hessian)
        known = self._hessian is not None and self._hessian() is hessian and self._version == hessian._version
        if self._factor is None or not known:
            self._factor = None  # of another Hessian: two need not be in memory
            self._factor = self._make(hessian)
            self._hessian = weakref.ref(hessian, self._forget)
            self._version = hessian._version
        return self._factor

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        self._factor = None
