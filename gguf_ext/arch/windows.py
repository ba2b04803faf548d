"""Sliding windows of some layers, as llama.cpp has them: `attention.sliding_window`, and which layers have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf_ext.arch.spec import Config, Entry, Told

FIELDS = ("sliding_window", "layer_types", "sliding_window_pattern")
"""What configurations say of windows; the pattern is in `layer_types` too."""


def sliding_layers(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def periodic(layers: int, period: int) -> list[bool]:
    """llama.cpp's default: each `period`-th layer sees the whole context."""
    return [bool((layer + 1) % period) for layer in range(layers)]


def window_reason(name: str, config: Config, needed: bool = False) -> str:
    """A line why llama.cpp's architecture `name` cannot have the model's window, "" where it can. needed: whether some
    layer must have one."""
    kinds = set(config["layer_types"])
    if strange := kinds - {"sliding_attention", "full_attention"}:
        return f"layer_types: {sorted(strange)[0]} does not exist in llama.cpp's {name}"
    size = config.get("sliding_window")
    if "sliding_attention" in kinds and (not size or size < 1):
        return f"sliding_window={size} of layers with sliding_attention is no window: give 1 or more"
    if needed and "sliding_attention" not in kinds:
        return f"layer_types without sliding_attention do not exist in llama.cpp's {name}"
    return ""


def window_entries(name: str, config: Config, period: int) -> list[Entry]:
    """The window, and its layers where they are not llama.cpp's own. With a window that no layer has, llama.cpp ends
    the process."""
    sliding = sliding_layers(config)
    entries = []
    if any(sliding):
        entries.append(Entry(f"{name}.attention.sliding_window", int(config["sliding_window"]), "uint32"))
    if any(sliding) and sliding != periodic(len(sliding), period):
        entries.append(Entry(f"{name}.attention.sliding_window_pattern", sliding, "bools"))
    return entries


def told_window(told: Told, period: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types` by what a file says."""
    pattern, window = told.get("attention.sliding_window_pattern"), told.get("attention.sliding_window")
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period = pattern
    sliding: Sequence[bool] = pattern if isinstance(pattern, list) else periodic(told.get("block_count"), period)
    return {
        "layer_types": ["sliding_attention" if window and one else "full_attention" for one in sliding],
        **({"sliding_window": window} if window else {}),  # transformers wants one of a model without such layers, too
    }
