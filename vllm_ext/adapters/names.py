"""The names that requests give, `NAME`, `NAME@RANK` or either with `*STRENGTH`, and the paths that vLLM carries for
them.

Names come from the network, so they are data, never paths.

RANK is max, heuristic (or median), min, r16 and its like, or a configuration saved in the adapter's folder. NAME alone
is the saved configuration `default`, where there is one, else heuristic; an adapter with a fixed rank has NAME only.
STRENGTH, such as 0.5, is what the adapter's delta is multiplied by: W + STRENGTH * s * B A.

A variant (an adapter at a rank and a strength) as a path, `FOLDER?sub=r16*0.5`, is what vLLM carries as `lora_path`
from the API server to its workers. It is a part of the key of cached prefixes, too: `FOLDER?sub=r16&v=1a2b3c4d` is
another adapter than what was there before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqft_plugins.adapter.folder import AGAIN, CONFIG, MAX_CONFIG_BYTES, method_of
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.errors import CheckpointError, SQFTError

MARK, VERSION = "?sub=", "&v="
MAX_STRENGTH = 10
"""Strengths are -10 to 10, in steps of 0.0001: a finite number of names."""
MAX_LENGTH = 200
"""Characters of a whole name."""
_NUMBER = re.compile(r"-?\d*\.?\d+", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What both parts are made of: no separator, no '%', no control character, no leading dot, ASCII only."""

MODALITIES = frozenset({"audio", "image", "input", "output", "prompt", "refusal", "text", "thinking", "tool", "video"})
"""What vLLM calls the parts of a chat message, up to their first `_`: an adapter of such a name is its default for
every request with such a part, the base's too (vLLM 0.32, `_get_active_default_mm_loras`)."""


class AdapterNameError(SQFTError):
    """A name that cannot be one of ours, whatever the directory holds."""


@dataclass(frozen=True)
class AdapterName:
    """adapter: the folder's name. rank: what stands behind the @, None for the plain name. strength: behind the *."""

    adapter: str
    rank: str | None = None
    strength: float = 1.0

    def __str__(self) -> str:
        return self.adapter + _behind("" if self.rank is None else f"@{self.rank}", self.strength)


def parse_name(name: str) -> AdapterName:
    """Raises AdapterNameError, with the name cut short, for whatever is not NAME or NAME@RANK, with or without
    *STRENGTH."""
    if len(name) > MAX_LENGTH:
        raise AdapterNameError(f"model name {shown(name)} has {len(name)} characters, {MAX_LENGTH} are allowed")
    variant, star, strength = name.partition("*")
    adapter, at, rank = variant.partition("@")
    if not _PART.fullmatch(adapter) or (at and not _PART.fullmatch(rank)):
        raise AdapterNameError(
            f"model name {shown(name)} is not NAME or NAME@RANK, each of letters, digits, '_', '.' and '-', a "
            "letter or digit first, perhaps with *STRENGTH"
        )
    return AdapterName(adapter, rank if at else None, parse_strength(strength) if star else 1.0)


def parse_strength(text: str) -> float:
    """Raises AdapterNameError for a number that is out of bounds, or written in another way than the shortest: one name
    for one thing."""
    strength = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(strength) <= MAX_STRENGTH:
        raise AdapterNameError(
            f"strength {shown(text)} is no number from -{MAX_STRENGTH} to {MAX_STRENGTH}: write such as math*0.5"
        )
    if text != _written(strength):
        raise AdapterNameError(f"strength {shown(text)} is written {_written(strength)}, with at most 4 decimals")
    return strength


def _behind(rank: str, strength: float) -> str:
    return rank if strength == 1 else f"{rank}*{_written(strength)}"


def _written(strength: float) -> str:
    return f"{strength + 0.0:.4f}".rstrip("0").rstrip(".")  # + 0.0: of -0


def why_not_served(folder: str, served: Collection[str] = ()) -> str | None:
    """Why an adapter's folder of this name cannot be served, with the way out; None where it can. served: the names of
    the base. Hidden folders are nobody's adapters; whoever lists folders leaves them out."""
    try:
        taken = parse_name(folder) != AdapterName(folder)
    except AdapterNameError:
        taken = True
    if taken:
        return (
            "its name cannot be asked for: rename it to letters, digits, '_', '.' and '-', a letter or digit first, at "
            f"most {MAX_LENGTH} of them"
        )
    if folder in MODALITIES:
        return f"vLLM would use it for every chat with a part of the type {folder}: rename it"
    if folder in {name.partition("@")[0] for name in served}:
        return "the base is served under this name: rename it, or give the base another with -- --served-model-name"
    return None


def shown(name: str) -> str:
    """A name for messages and logs: quoted, escaped, at most 60 characters of it."""
    return ascii(name if len(name) <= 60 else f"{name[:60]}...")


@dataclass(frozen=True)
class Variant:
    """folder: the adapter. rank, strength: as in AdapterName. version: of its files, or empty."""

    folder: Path
    rank: str | None = None
    version: str = ""
    strength: float = 1.0

    def __str__(self) -> str:
        version = VERSION + self.version if self.version else ""
        return f"{self.folder}{MARK}{_behind(self.rank or '', self.strength)}{version}"


def parse_path(lora_path: str) -> Variant | None:
    """The variant behind a `lora_path`, None where it is a plain folder. Raises AdapterNameError for a rank or a
    strength that cannot be one."""
    folder, mark, rest = lora_path.rpartition(MARK)
    if not mark:
        return None
    asked, _, version = rest.partition(VERSION)
    name = parse_name(f"x{'@' if asked[:1] not in ('', '*') else ''}{asked}")
    return Variant(Path(folder), name.rank, version, name.strength)


def variant_of(lora_path: str) -> Variant | None:
    """The variant behind a `lora_path`: as `parse_path`, or the plain folder of an SQFT adapter, which vLLM would read
    as a LoRA of the largest rank. None where it is vLLM's own matter. A damaged SQFT adapter is ours, too: whoever
    opens it says what is wrong."""
    variant = parse_path(lora_path)
    if variant is not None:
        return variant
    folder = Path(lora_path)
    try:
        config = read_object(folder / CONFIG, AGAIN, most_bytes=MAX_CONFIG_BYTES)
    except CheckpointError:
        return None
    return Variant(folder) if method_of(config) == "SQFT" else None
