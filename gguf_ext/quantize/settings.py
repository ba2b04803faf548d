"""The options of `sqft export gguf-quantized`."""

from __future__ import annotations

from pydantic import field_validator

from gguf_ext.errors import GGUFError
from sqft_plugins.compress.calibration import check_texts
from sqft_plugins.errors import nearest
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.checked import CheckedPath

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
"""llama.cpp's mixes of types that are all grids → its number (enum llama_ftype)."""


class QuantizeOptions(Settings):
    """How to quantize. Raises GGUFError for an unknown type."""

    type: str = option("Q4_K_M", "llama.cpp's mix of types, such as Q4_K_M, Q4_0 or Q3_K_S.", metavar="TYPE")
    importance: bool = option(
        True,
        "Whether inputs weigh as much as they are used in the calibration text.",
        name="--no-importance",
        help="Without an importance matrix: every input weighs the same.",
    )
    calibration: str | None = option(
        None,
        "Text, JSONL or JSON, or a data set on the hub, as of `sqft quantize`. Default: the language reference that "
        "Python ships.",
        CheckedPath(check_texts),
        "name or file",
        metavar="FILE|DATASET",
    )
    sequences: int = option(32, "Calibration sequences.", ge=1)
    length: int = option(128, "Tokens of each calibration sequence.", ge=2)

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value.upper() not in FILE_TYPES:
            raise GGUFError(f"type={value!r} is unknown: {nearest(value.upper(), FILE_TYPES)}")
        return value.upper()
