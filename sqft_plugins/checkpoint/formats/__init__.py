"""The ways in which a folder may store quantized weights.

    pack_quantized   integers of 2 to 8 bits, as `sqft quantize` writes them
    compact          the same at 4 bits, for distribution
    autogptq, awq    integers of AutoGPTQ, GPTQModel and AutoAWQ
    int8             integers of 8 bits, a byte each
    fp8, fp4         small floats of compressed-tensors, transformers and DeepSeek
    bitsandbytes     NF4

To add one: derive from `Int4Format` (base.py), say in `settings` which folders it reads, and name it in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.formats.autogptq import AutoGPTQ
from sqft_plugins.checkpoint.formats.awq import AWQ
from sqft_plugins.checkpoint.formats.base import Int4Format
from sqft_plugins.checkpoint.formats.bitsandbytes import BitsAndBytes
from sqft_plugins.checkpoint.formats.compact import Compact
from sqft_plugins.checkpoint.formats.fp4 import MXFP4Packed, NVFP4Packed
from sqft_plugins.checkpoint.formats.fp8 import FineGrainedFP8, FloatQuantized
from sqft_plugins.checkpoint.formats.int8 import IntQuantized
from sqft_plugins.checkpoint.formats.pack_quantized import PackQuantized
from sqft_plugins.errors import CheckpointError

__all__ = ["FORMATS", "Compact", "Int4Format", "PackQuantized", "find_format"]

FORMATS: tuple[type[Int4Format], ...] = (
    PackQuantized, Compact, AutoGPTQ, AWQ, IntQuantized, FloatQuantized, FineGrainedFP8, NVFP4Packed, MXFP4Packed,
    BitsAndBytes,
)  # fmt: skip


def find_format(path: Path | None, config: Mapping[str, Any] | None) -> tuple[type[Int4Format], dict[str, Any] | None]:
    """The format of the folder `path` (None: of a model in memory), whose config.json has `config` as
    `quantization_config`, and its settings.

    A float folder has no settings and counts as PackQuantized, which finds no INT4 weights in it. A folder in a format
    that this release does not read gets one that raises CheckpointError when it is opened.
    """
    for kind in FORMATS:
        settings = kind.settings(path, config)
        if settings is not None:
            return kind, settings
    return (PackQuantized, None) if config is None else (Unknown, dict(config))


class Unknown(Int4Format):
    """A format that this release does not read."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        found = f"{self._settings.get('quant_method')}/{self._settings.get('format')}"
        raise CheckpointError(
            f"model {self._tensors.path} is quantized as {found}: this release reads "
            f"{', '.join(kind.declared for kind in FORMATS)}"
        )
