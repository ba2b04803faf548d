"""Blocks: how a row of a GGUF tensor holds its weights, for every type whose codes are a grid.

A row is cut into blocks of 32, 64 or 256 weights. Some bytes of a block are codes, the others the numbers that make
weights of them: `(level(code) - zero_point) * scale + offset`, as in `sqft_plugins.grid`. Types differ in where these
bytes are, and that is data, not code:

    types      TensorType: the types, their names, the bytes of a row
    planes     the bits of codes in bytes, read and written
    layout     BlockLayout: planes, groups, scales, zero point, table
    simple     Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    k_quants   Q2_K Q3_K Q4_K Q5_K Q6_K
    tables     IQ4_NL IQ4_XS MXFP4 NVFP4
    codec      raw rows → codes and grid; other codes into raw rows
    steps      integer weights into new blocks of Q4_0, Q5_0 and Q8_0
    proof      `python -m gguf_ext.blocks`: compare all of it with ggml's own dequantizers

IQ1, IQ2, IQ3 and TQ are codebooks: a code stands for several weights at once. They are read by the gguf package, and
nothing is trained through them.
"""

from gguf_ext.blocks.codec import codes_of as codes_of
from gguf_ext.blocks.codec import dequantize as dequantize
from gguf_ext.blocks.codec import grid_kind as grid_kind
from gguf_ext.blocks.codec import grid_of as grid_of
from gguf_ext.blocks.codec import replace_codes as replace_codes
from gguf_ext.blocks.codec import unpack as unpack
from gguf_ext.blocks.steps import decode as decode
from gguf_ext.blocks.steps import encode as encode
from gguf_ext.blocks.types import BLOCK as BLOCK
from gguf_ext.blocks.types import OFFSET as OFFSET
from gguf_ext.blocks.types import TensorType as TensorType
from gguf_ext.blocks.types import row_bytes as row_bytes
from gguf_ext.blocks.types import row_weights as row_weights
from gguf_ext.blocks.types import type_name as type_name
