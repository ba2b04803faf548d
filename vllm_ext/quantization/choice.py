"""Which operator computes an INT4 linear: the fastest that takes the shard."""

from __future__ import annotations

from typing import NamedTuple

from sqft_plugins.errors import SQFTError
from vllm_ext.quantization.operators import MAX_DENSITY, Operator, Problem
from vllm_ext.variables import OPERATOR, OPERATORS, forced_operator


class Choice(NamedTuple):
    """reason: why this one and not a faster one, for the log."""

    operator: Operator
    reason: str


def operators() -> dict[str, Operator]:
    """All of them by name."""
    from vllm_ext.quantization.sparse_operator import SparseOperator
    from vllm_ext.quantization.torch_operator import TorchOperator
    from vllm_ext.quantization.vllm_operator import VllmOperator  # imports vLLM

    return dict(zip(OPERATORS, (SparseOperator(), VllmOperator(), TorchOperator()), strict=True))


def choose(problem: Problem) -> Choice:
    """The fastest operator that takes the shard, or the one that SQFT_VLLM_OPERATOR names.

    A shard of a density above MAX_DENSITY goes to vLLM's dense kernel. Where vLLM has none for this processor (without
    AVX-512) the sparse kernel still is the fastest that keeps INT4 in memory, at 5 bits a weight.

    Raises SQFTError where the named one is unknown or cannot.
    """
    known = operators()
    forced = forced_operator()
    if forced is not None:
        why_not = known[forced].why_not(problem)
        if why_not is not None:
            raise SQFTError(f"{OPERATOR}={forced}: {why_not}: unset it")
        return Choice(known[forced], f"{OPERATOR}={forced}")
    reasons: list[str] = []
    order = list(OPERATORS)
    if problem.density > MAX_DENSITY:
        order = ["vllm", "sparse", "torch"]
        reasons.append(f"more than {MAX_DENSITY:.0%} of the layer is kept")

    for operator in (known[name] for name in order):
        why_not = operator.why_not(problem)
        if why_not is None:
            return Choice(operator, "; ".join(reasons) or "the fastest that fits")
        reasons.append(f"not {operator.name}: {why_not}")
    raise AssertionError("the torch operator takes every shard")
