"""llama.cpp's mixes of types, as files are called by them; imports nothing."""

from __future__ import annotations

from gguf_ext.errors import GGUFError
from sqft_plugins.errors import nearest

FILE_TYPES = {
    "Q2_K": 10,
    "Q2_K_S": 21,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "Q8_0": 7,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
"""Mixes of types that are all grids → the number of each (enum llama_ftype)."""
WITH_ZERO = ("Q3_K_S", "Q4_0", "Q5_0", "Q6_K", "Q8_0")
"""Mixes whose tensors in the blocks are of types with an exact 0, as a rule."""
UPGRADED = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}
"""With an importance matrix, the type of the first eighth of the down projections (llama-quant.cpp)."""

GPTQ, OWN = "gptq", "llama.cpp"
METHODS = (GPTQ, OWN)
"""GPTQ on the scales that llama.cpp chose; or its codes, too."""


def file_type(name: str) -> str:
    """The name of a mix in capital letters. Raises GGUFError for an unknown one."""
    if name.upper() not in FILE_TYPES:
        raise GGUFError(f"type={name!r} is unknown: {nearest(name.upper(), FILE_TYPES)}")
    return name.upper()


def check_pruned(what: str, mix: str, method: str, importance: bool) -> None:
    """Raises GGUFError where a pruned model would lose its zeros. what: the model, for the message. mix: in capital
    letters."""
    if method != GPTQ:
        raise GGUFError(f"{what} is pruned, and llama.cpp's quantizer keeps no zeros: use --method {GPTQ}")
    if mix not in WITH_ZERO:
        names = ", ".join(name.lower() for name in WITH_ZERO)
        raise GGUFError(f"{what} is pruned, and types of {mix} cannot hold a 0: use --grid {names}")
    if importance and mix in UPGRADED:
        raise GGUFError(
            f"{what} is pruned, and with an importance matrix llama.cpp takes {UPGRADED[mix]} for some layers of "
            f"{mix}, which cannot hold a 0: use --no-importance, or --grid q8_0"
        )
