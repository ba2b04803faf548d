"""Rotary positions: which of transformers' kinds llama.cpp computes alike, and the entries that it needs for that.

transformers: modeling_rope_utils.py. llama.cpp: the entries are read for every architecture (llama-model.cpp,
load_hparams), the tensors of factors by those whose graph asks for them, and YaRN is done in llama-context.cpp and
ggml's rope. It reads YaRN's betas for other architectures only, so here they are what it takes: 32 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gguf_ext.arch.spec import Config, Entry, Key, Told, head_width, short

SCALED = ("default", "linear", "yarn")
"""Kinds that need entries alone: every graph with rotary positions has them."""
FACTORED = (*SCALED, "llama3", "longrope")
"""Of graphs that also divide each frequency by a tensor of factors: `llama`; `phi3` for longrope only."""
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""YaRN's, in llama.cpp."""
ORIGINALS = tuple(2**exponent for exponent in range(11, 18))
"""Contexts that a model of Llama 3's kind may have had before it was stretched."""


def rope_reason(name: str, rope: Config, kinds: Sequence[str]) -> str:
    """A line why llama.cpp's architecture `name` cannot rotate by `rope`, empty where it can."""
    kind = rope["rope_type"]
    if kind not in kinds:
        return f"rope_type={kind!r} has no table for {name}: use one of {', '.join(kinds)}"
    if kind != "yarn":
        return ""

    for beta, fixed in BETAS.items():
        if float(rope.get(beta) or fixed) != fixed:
            return f"{beta}={rope[beta]} of YaRN is fixed to {fixed:g} in llama.cpp's {name}"
    if rope.get("truncate", True) is False:
        return f"truncate=False of YaRN does not exist in llama.cpp's {name}: only models that truncate"
    return ""


def _rotated(config: Config) -> int:
    """Columns of a head that are rotated."""
    return int(head_width(config) * float(config["rope_parameters"].get("partial_rotary_factor") or 1))


ROPE_KEYS = (
    Key("rope.dimension_count", _rotated),
    Key("attention.key_length", head_width),
    Key("attention.value_length", head_width),
    Key("rope.freq_base", lambda config: config["rope_parameters"]["rope_theta"], "float32"),
)
"""Widths of heads, and the rotary base; `scaling_entries` has the scaling."""


def scaling_entries(name: str, rope: Config, config: Config) -> list[Entry]:
    """`rope.scaling.*`, where there is any."""
    kind = rope["rope_type"]
    entries = []

    if kind in ("linear", "yarn"):
        entries.append(Entry(f"{name}.rope.scaling.type", kind, "string"))
        entries.append(Entry(f"{name}.rope.scaling.factor", rope_factor(rope, config), "float32"))
    elif kind == "longrope" and name != "phi3":  # whose graph takes the factors without being asked
        entries.append(Entry(f"{name}.rope.scaling.type", kind, "string"))

    if kind in ("yarn", "longrope"):
        original = original_context(rope, config)
        entries.append(Entry(f"{name}.rope.scaling.original_context_length", original, "uint32"))

    if kind == "longrope":
        attention = longrope_attention(rope, config)
        entries.append(Entry(f"{name}.rope.scaling.attn_factor", attention, "float32"))
    elif kind == "yarn" and (attention := yarn_attention(rope, config)) != 1:
        entries.append(Entry(f"{name}.rope.scaling.attn_factor", attention, "float32"))
    return entries


def told_rope(told: Told) -> dict[str, Any]:
    """The `rope_parameters` by what a file says."""
    kind, context = str(told.get("rope.scaling.type")), told.get("context_length")
    factor, attention = told.get("rope.scaling.factor"), told.get("rope.scaling.attn_factor")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": short(told.get("rope.freq_base"))}

    width, rotated = told.get("attention.key_length"), told.get("rope.dimension_count")
    if width and rotated and width != rotated:
        rope["partial_rotary_factor"] = rotated / width

    if "rope_factors_long.weight" in told.tensors:
        lengths = {f"{n}_factor": told.constant(f"rope_factors_{n}.weight").tolist() for n in ("long", "short")}
        original = told.get("rope.scaling.original_context_length")
        more = {"factor": context / original, "original_max_position_embeddings": original}
        return {**rope, **more, "rope_type": "longrope", **lengths, "attention_factor": short(attention)}
    if "rope_freqs.weight" in told.tensors:
        return {**rope, **_told_llama3(told.constant("rope_freqs.weight"), rope["rope_theta"])}
    if kind == "yarn":
        original = told.get("rope.scaling.original_context_length")
        usual = {} if attention in (0, 1) else {"attention_factor": attention * _magnitude(factor)}
        return {**rope, "rope_type": kind, "factor": factor, "original_max_position_embeddings": original, **usual}
    if kind == "linear" and factor not in (0, 1):
        return {**rope, "rope_type": kind, "factor": factor}
    return rope


def _told_llama3(factors: Tensor, theta: float) -> dict[str, Any]:
    """Llama 3's parameters behind the factors of a file, of which only their largest is told: those that Meta's models
    have are tried. {} where none makes these factors, which the comparison of the file's tensors then says."""
    known = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for original in ORIGINALS:
        rope = {**known, "factor": short(float(factors.max())), "original_max_position_embeddings": original}
        if torch.allclose(llama3_rope_factors(2 * len(factors), {**rope, "rope_theta": theta}), factors, rtol=1e-5):
            return {**rope, "rope_type": "llama3"}
    return {}


def rope_constants(config: Config) -> dict[str, Tensor]:
    """What each rotary frequency is divided by, float32 [rotated / 2]: for Llama 3 the one tensor, for LongRoPE one in
    a long and one in a short context."""
    rope = config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": llama3_rope_factors(head_width(config), rope)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    return {}


def rope_note(config: Config) -> str:
    """What the user must know of a kind that llama.cpp does otherwise in some contexts; for `Architecture.note`."""
    rope = config["rope_parameters"]
    if rope["rope_type"] == "longrope":
        original = original_context(rope, config)
        return (
            f"LongRoPE: llama.cpp takes the long factors for every text where its context is above {original} tokens, "
            f"transformers only where the text is: for short texts open the file with context={original}"
        )
    return ""


def rope_factor(rope: Config, config: Config) -> float:
    """By how much the context was stretched."""
    if rope.get("factor") is not None:
        return float(rope["factor"])
    return int(config["max_position_embeddings"]) / original_context(rope, config)


def original_context(rope: Config, config: Config) -> int:
    """Tokens of the context before it was stretched."""
    original = "original_max_position_embeddings"
    return int(rope.get(original) or config.get(original) or config["max_position_embeddings"])


def yarn_attention(rope: Config, config: Config) -> float:
    """What YaRN multiplies queries and keys with (arXiv 2309.00071, section 3.4), over what llama.cpp takes for it:
    0.1 ln(factor) + 1."""
    factor = rope_factor(rope, config)
    usual = _magnitude(factor)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"]) / usual

    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if not above or not below:
        return 1.0
    return _magnitude(factor, float(above)) / _magnitude(factor, float(below)) / usual


def _magnitude(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def longrope_attention(rope: Config, config: Config) -> float:
    """What LongRoPE multiplies queries and keys with: sqrt(1 + ln(longer) / ln(original)), longer = context / original
    (arXiv 2402.13753, section 3.3), or what the model says."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    longer = rope_factor(rope, config)
    return math.sqrt(1 + math.log(longer) / math.log(original_context(rope, config))) if longer > 1 else 1.0


def llama3_rope_factors(head: int, rope: Config) -> Tensor:
    """float32 [head / 2]: what each rotary frequency is divided by (llama.cpp's `rope_freqs`).

    Llama 3.1's rule: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` are left alone, and the frequencies between are interpolated.
    """
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    frequency = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = original * frequency / (2 * math.pi)  # how often the original context turns this frequency
    between = (turns >= low) & (turns <= high)  # none of them where low is above high
    smooth = torch.where(between & (low != high), (turns - low) / ((high - low) or 1.0), turns >= low)
    return (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)  # 0: stretched, 1: as it was
