"""The kinds of grids of the core. Those of llama.cpp are in `gguf_ext`."""

from __future__ import annotations

import torch

from sqft_plugins.errors import GridError
from sqft_plugins.grid.kind import GridKind

UNIFORM_BITS = (2, 3, 4, 5, 6, 8)
INT2, INT3, INT4, INT5, INT6, INT8 = (GridKind(f"int{bits}", bits) for bits in UNIFORM_BITS)
"""Integers with an integer zero point."""
UNIFORM = {kind.bits: kind for kind in (INT2, INT3, INT4, INT5, INT6, INT8)}
"""The same by bits."""
ACT_ORDER = {kind.bits: GridKind(f"{kind.name}_act_order", kind.bits) for kind in UNIFORM.values()}
"""By bits, the same with `Grid.column_group`: of a name of their own, so that kernels and formats whose groups are
neighbours refuse them."""

BITS, MAX_CODE, SYMMETRIC_ZERO_POINT = INT4.bits, INT4.max_code, INT4.symmetric_zero_point
"""Of INT4, the only width of the kernels."""

E2M1 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""The positive values of the OCP's 4-bit float, doubled: integers, as ggml has them. The scale is half of the stored
one, so that it is finite for every exponent of MXFP4."""

IQ4_NL = GridKind(
    "iq4_nl",
    4,
    tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))),
    group_size=32,
)
"""llama.cpp's non-linear 4 bits (`kvalues_iq4nl` of ggml-common.h). 0 is not a value."""
MXFP4 = GridKind("mxfp4", 4, (*E2M1, *(-value for value in E2M1)), group_size=32)
"""OCP microscaling: e2m1 times a power of two."""
NVFP4 = GridKind("nvfp4", 4, MXFP4.levels, group_size=16)
"""e2m1 times a scale in e4m3, times one float32 for the tensor."""
NF4 = GridKind(
    "nf4",
    4,
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip
"""QLoRA's quantiles of a normal distribution (arXiv 2305.14314, appendix E)."""
FP8_E4M3 = GridKind(
    "fp8_e4m3",
    8,
    tuple(torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()),
)
"""torch.float8_e4m3fn: the code is its byte, two of them are NaN."""


def require_int4(kind: GridKind, what: str, runtime: str) -> None:
    """Raises GridError where `what` (a model or a weight) is not INT4, which is all that `runtime` has."""
    if kind.name != INT4.name:
        raise GridError(
            f"{what} is {kind.name.upper()}, and {runtime} has INT4 only: quantize with bits=4, or load the model as "
            "float linears (sqft_plugins.checkpoint.load_model)"
        )


BUILTIN = {kind.name: kind for kind in (*UNIFORM.values(), IQ4_NL, MXFP4, NVFP4, NF4, FP8_E4M3)}
"""The core's kinds by name, without those in act-order, which only folders of others have."""
