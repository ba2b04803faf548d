"""Grids: the one definition of scales, codes and packing.

Training, merging, checkpoints, vLLM and GGUF all call this package, so that they agree to the bit. A quantized weight
is

    value[out, in] = (level(code[out, in]) - zero_point[out, groups]) * scale[out, groups] + offset[out, groups]

in float32 and in this order, with codes in uint8 and `groups = in / group_size`. Most grids have only some of these:

| | level | zero_point | offset |
|---|---|---|---|
| uniform (INT2 to INT8; Q4_0, Q6_K) | the code | an integer | none |
| table (IQ4_NL, MXFP4, NF4, FP8) | a table's number | none | none |
| affine (Q4_1, Q4_K) | the code | none | a float |

Where 0 is a value of every group exactly (`Grid.has_zero`), a pruned weight stays exactly 0 (SQFT, arXiv 2410.03750,
section 3); nowhere else may there be a mask.

    kind.py     what a code stands for; the nearest level
    search.py   the same, fast
    kinds.py    the kinds by name
    frozen.py   Grid: the numbers of one weight, and the formula both ways
    groups.py   how many columns share a scale
    scales.py   making a uniform grid
    weight.py   codes on a grid
    packing.py  codes in words
    proof.py    what must hold of every kind; `python -m sqft_plugins.grid` tries it
    patch.py    what changes of the codes of a weight, in few bytes
"""

from sqft_plugins.grid.frozen import Grid as Grid
from sqft_plugins.grid.groups import GROUP_SIZES as GROUP_SIZES
from sqft_plugins.grid.groups import PER_CHANNEL as PER_CHANNEL
from sqft_plugins.grid.groups import group_count as group_count
from sqft_plugins.grid.groups import group_width as group_width
from sqft_plugins.grid.kind import GridKind as GridKind
from sqft_plugins.grid.kinds import ACT_ORDER as ACT_ORDER
from sqft_plugins.grid.kinds import BITS as BITS
from sqft_plugins.grid.kinds import BUILTIN as BUILTIN
from sqft_plugins.grid.kinds import FP8_E4M3 as FP8_E4M3
from sqft_plugins.grid.kinds import INT2 as INT2
from sqft_plugins.grid.kinds import INT3 as INT3
from sqft_plugins.grid.kinds import INT4 as INT4
from sqft_plugins.grid.kinds import INT5 as INT5
from sqft_plugins.grid.kinds import INT6 as INT6
from sqft_plugins.grid.kinds import INT8 as INT8
from sqft_plugins.grid.kinds import IQ4_NL as IQ4_NL
from sqft_plugins.grid.kinds import MAX_CODE as MAX_CODE
from sqft_plugins.grid.kinds import MXFP4 as MXFP4
from sqft_plugins.grid.kinds import NF4 as NF4
from sqft_plugins.grid.kinds import NVFP4 as NVFP4
from sqft_plugins.grid.kinds import SYMMETRIC_ZERO_POINT as SYMMETRIC_ZERO_POINT
from sqft_plugins.grid.kinds import UNIFORM as UNIFORM
from sqft_plugins.grid.kinds import require_int4 as require_int4
from sqft_plugins.grid.packing import join_numbers as join_numbers
from sqft_plugins.grid.packing import pack as pack
from sqft_plugins.grid.packing import pack_zero_point as pack_zero_point
from sqft_plugins.grid.packing import packed_words as packed_words
from sqft_plugins.grid.packing import padded_words as padded_words
from sqft_plugins.grid.packing import part_numbers as part_numbers
from sqft_plugins.grid.packing import unpack as unpack
from sqft_plugins.grid.packing import unpack_zero_point as unpack_zero_point
from sqft_plugins.grid.patch import apply_patch as apply_patch
from sqft_plugins.grid.patch import make_patch as make_patch
from sqft_plugins.grid.scales import MAX_SCALE as MAX_SCALE
from sqft_plugins.grid.scales import MIN_SCALE as MIN_SCALE
from sqft_plugins.grid.scales import fit_grid as fit_grid
from sqft_plugins.grid.scales import make_grid as make_grid
from sqft_plugins.grid.scales import make_scale as make_scale
from sqft_plugins.grid.scales import round_scale as round_scale
from sqft_plugins.grid.scales import symmetric_zero_point as symmetric_zero_point
from sqft_plugins.grid.weight import QuantizedWeight as QuantizedWeight
from sqft_plugins.grid.weight import dequantize as dequantize
from sqft_plugins.grid.weight import int4_weight as int4_weight
from sqft_plugins.grid.weight import quantize as quantize
from sqft_plugins.grid.weight import round_to_nearest as round_to_nearest
from sqft_plugins.grid.weight import steps as steps
from sqft_plugins.grid.weight import zero_codes as zero_codes
