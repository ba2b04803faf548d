"""`python -m gguf_ext.blocks [--blocks N] [--seed N] [--type NAME]`: compare what we and ggml make of random blocks.

Prints a line for each type; exit status 1 where a bit differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gguf_ext.blocks.codec import LAYOUTS
from gguf_ext.blocks.proof import compare_with_ggml
from gguf_ext.blocks.types import TensorType
from sqft_plugins.errors import SQFTError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gguf_ext.blocks", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--blocks", type=int, default=100_000, help="random blocks of each type [100000]")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers [0]")
    parser.add_argument("--type", choices=[kind.name for kind in LAYOUTS], help="this type alone")
    given = parser.parse_args(arguments)
    if given.blocks < 1:
        parser.error(f"--blocks {given.blocks} compares nothing: give 1 or more")

    kinds = tuple(LAYOUTS) if given.type is None else (TensorType[given.type],)
    ok = True
    try:
        for found in compare_with_ggml(kinds, given.blocks, given.seed):
            ok &= found.ok
            print(
                f"{found.type:7} {found.blocks} blocks, {found.weights} weights ({found.nan} NaN): {found.different} "
                f"differ from ggml; {found.lost} blocks lost a byte when codes were put back"
            )
    except SQFTError as error:
        print(error, file=sys.stderr)
        return 1
    print("equal" if ok else "different")
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
