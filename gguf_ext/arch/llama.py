"""Llama 1, 2 and 3: transformers `LlamaForCausalLM` → llama.cpp `llama`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gguf_ext.arch.decoder import decoder_rules, rope_entries, why_not
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, head_width

ROPE_TYPES = ("default", "linear", "llama3")


def _reason(config: Config) -> str:
    return why_not("llama", config, ROPE_TYPES)


def _entries(config: Config) -> list[Entry]:
    return rope_entries("llama", config)


def _constants(config: Config) -> dict[str, Tensor]:
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return {}
    return {"rope_freqs.weight": llama3_rope_factors(head_width(config), rope)}


def llama3_rope_factors(head: int, rope: Config) -> Tensor:
    """float32 [head / 2]: what each rotary frequency is divided by (llama.cpp's `rope_freqs`).

    Llama 3.1's rule: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` are left alone, and the frequencies between are interpolated.
    """
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    frequency = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = original * frequency / (2 * math.pi)  # how often the original context turns this frequency
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched, 1: as it was
    return (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM",),
    keys=DECODER_KEYS,
    rules=decoder_rules(rotated=True, qkv_bias="optional", bias="optional"),
    reason=_reason,
    entries=_entries,
    constants=_constants,
)
