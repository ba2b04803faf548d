"""The ggml types that this package reads weight by weight, and the bytes of their rows."""

from __future__ import annotations

from enum import IntEnum

from gguf_ext.errors import BlockSizeError

BLOCK = 32
"""Weights in a block of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and MXFP4."""
SUPER_BLOCK = 256
"""Weights in a block of the K-quants and IQ4_XS."""


class TensorType(IntEnum):
    """The values are ggml's (enum ggml_type, ggml.h)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39
    NVFP4 = 40

    @property
    def is_block(self) -> bool:
        """Whether its rows are cut into blocks."""
        return BLOCKS[self][0] > 1

    @property
    def is_written(self) -> bool:
        """Whether `sqft export gguf` writes it; the others are read, and new codes are put into what is there."""
        return self in WRITTEN

    @property
    def holds_steps(self) -> bool:
        """Whether `sqft export gguf` puts INT4 weights into it, exactly: Q4_0 and Q5_0."""
        return self in OFFSET


BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (BLOCK, 18),
    TensorType.Q4_1: (BLOCK, 20),
    TensorType.Q5_0: (BLOCK, 22),
    TensorType.Q5_1: (BLOCK, 24),
    TensorType.Q8_0: (BLOCK, 34),
    TensorType.Q2_K: (SUPER_BLOCK, 84),
    TensorType.Q3_K: (SUPER_BLOCK, 110),
    TensorType.Q4_K: (SUPER_BLOCK, 144),
    TensorType.Q5_K: (SUPER_BLOCK, 176),
    TensorType.Q6_K: (SUPER_BLOCK, 210),
    TensorType.IQ4_NL: (BLOCK, 18),
    TensorType.IQ4_XS: (SUPER_BLOCK, 136),
    TensorType.MXFP4: (BLOCK, 17),
    TensorType.NVFP4: (64, 36),
}
"""Weights and bytes of a block; of a float type a block is one weight."""
OFFSET = {TensorType.Q4_0: 8, TensorType.Q5_0: 16}
"""What is added to a step before it is stored unsigned."""
WRITTEN = frozenset([TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, *OFFSET])
CODEBOOKS = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M"}
CODEBOOKS |= {34: "TQ1_0", 35: "TQ2_0"}
"""Types whose codes stand for several weights at once, which no grid is: the gguf package reads them."""


def type_name(number: int) -> str:
    """The name of a type in ggml, by its number."""
    known = {int(kind): kind.name for kind in TensorType}
    return known.get(number) or CODEBOOKS.get(number, f"type {number}")


def row_bytes(columns: int, kind: TensorType) -> int:
    """Bytes of one row. Raises BlockSizeError where blocks do not fit."""
    weights, size = BLOCKS[kind]
    if columns % weights:
        raise BlockSizeError(
            f"in={columns} is not a multiple of {weights}: {kind.name} cannot hold it, keep the layer float"
        )
    return columns // weights * size


def row_weights(size: int, kind: TensorType) -> int:
    """The weights of a row of `size` bytes."""
    weights, each = BLOCKS[kind]
    return size // each * weights
