"""The names that requests give, `NAME` or `NAME@RANK`, and the paths that vLLM carries for them.

Names come from the network, so they are data, never paths.

RANK is max, heuristic (or median), min, r16 and its like, or a configuration saved in the adapter's folder. NAME alone
is the saved configuration `default`, where there is one, else heuristic; an adapter with a fixed rank has NAME only.

A variant (an adapter at a rank) as a path, `FOLDER?sub=r16`, is what vLLM carries as `lora_path` from the API server to
its workers. It is a part of the key of cached prefixes, too: `FOLDER?sub=r16&v=1a2b3c4d` is another adapter than
what was there before.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqft_plugins.adapter.folder import AGAIN, CONFIG, MAX_CONFIG_BYTES, method_of
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.errors import CheckpointError, SQFTError

MARK, VERSION = "?sub=", "&v="
MAX_LENGTH = 200
"""Characters of a whole name."""
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What both parts are made of: no separator, no '%', no control character, no leading dot, ASCII only."""

MODALITIES = frozenset({"audio", "image", "input", "output", "prompt", "refusal", "text", "thinking", "tool", "video"})
"""What vLLM calls the parts of a chat message, up to their first `_`: an adapter of such a name is its default for
every request with such a part, the base's too (vLLM 0.32, `_get_active_default_mm_loras`)."""


class AdapterNameError(SQFTError):
    """A name that cannot be one of ours, whatever the directory holds."""


@dataclass(frozen=True)
class AdapterName:
    """adapter: the folder's name. rank: what stands behind the @, None for the plain name."""

    adapter: str
    rank: str | None = None

    def __str__(self) -> str:
        return self.adapter if self.rank is None else f"{self.adapter}@{self.rank}"


def parse_name(name: str) -> AdapterName:
    """Raises AdapterNameError, with the name cut short, for whatever is not NAME or NAME@RANK."""
    if len(name) > MAX_LENGTH:
        raise AdapterNameError(f"model name {shown(name)} has {len(name)} characters, {MAX_LENGTH} are allowed")
    adapter, at, rank = name.partition("@")
    if not _PART.fullmatch(adapter) or (at and not _PART.fullmatch(rank)):
        raise AdapterNameError(
            f"model name {shown(name)} is not NAME or NAME@RANK, each of letters, digits, '_', '.' and '-', a "
            "letter or digit first"
        )
    return AdapterName(adapter, rank if at else None)


def why_not_served(folder: str, served: Collection[str] = ()) -> str | None:
    """Why an adapter's folder of this name cannot be served, with the way out; None where it can. served: the names of
    the base. Hidden folders are nobody's adapters; whoever lists folders leaves them out."""
    try:
        taken = parse_name(folder).rank is not None
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
    """folder: the adapter. rank: as in AdapterName, None for the default. version: of its files, or empty."""

    folder: Path
    rank: str | None = None
    version: str = ""

    def __str__(self) -> str:
        return f"{self.folder}{MARK}{self.rank or ''}{VERSION + self.version if self.version else ''}"


def parse_path(lora_path: str) -> Variant | None:
    """The variant behind a `lora_path`, None where it is a plain folder. Raises AdapterNameError for a rank that cannot
    be one."""
    folder, mark, rest = lora_path.rpartition(MARK)
    if not mark:
        return None
    rank, _, version = rest.partition(VERSION)
    return Variant(Path(folder), parse_name(str(AdapterName("x", rank))).rank if rank else None, version)


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
