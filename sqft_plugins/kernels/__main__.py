"""`python -m sqft_plugins.kernels`: for which machine the kernels were compiled, what runs here, whether it is right.

Each back end that runs here multiplies once and is held to the result in float64. Exit status 1 where there is no
compiled library, or torch does not take it, or a result is wrong.
"""

from __future__ import annotations

import sys

import torch

from sqft_plugins.errors import KernelError
from sqft_plugins.kernels import SparseInt4Weight
from sqft_plugins.kernels.library import FILE, built, forced, library

OUT, IN, GROUP = 48, 256, 128
TOLERANCE = 1e-4
"""Of the largest result: the fixed point of csrc/kernel.h costs a tenth of it at most."""


def wrong_back_ends() -> list[str]:
    """The names of those whose product is not that of the weight in float64."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (OUT, IN), generator=random, dtype=torch.uint8)
    scale = torch.ones(OUT, IN // GROUP)
    x = torch.randn(3, IN, generator=random)
    weight = SparseInt4Weight.from_codes(codes, scale)
    exact = x.double() @ (codes.double() - 8).t()

    wrong = []
    for name in library().supported():
        with forced(name):
            error = (weight.linear(x).double() - exact).abs().max()
        if not error <= TOLERANCE * exact.abs().max():
            wrong.append(name)
    return wrong


def main() -> int:
    try:
        found = library()
    except KernelError as error:
        print(error, file=sys.stderr)
        return 1
    if found.handle is None:
        print(found.why, file=sys.stderr)
        return 1

    wrong = wrong_back_ends()
    print(f"library  {FILE}")
    print(f"built    {built() or 'nothing beside it says for which machine'}")
    print(f"runs     {', '.join(found.supported())}")
    print(f"chosen   {found.path}: {found.why}")
    print(f"right    {'all' if not wrong else 'not ' + ', '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
