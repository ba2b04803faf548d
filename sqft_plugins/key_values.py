"""The cache of keys and values of a transformers model, under the name that its version has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("cache", "past_key_values")
"""As an argument and in an output: from transformers 5.24 on, and before."""


def cache_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """The cache in the output of a model or among the arguments of a call → {name: cache}, as arguments of the next
    call; empty where there is none.

    An output is read by its items: asked for the name of before, that of transformers 5.24 warns.
    """
    return {name: value for name, value in values.items() if name in NAMES and value is not None}
