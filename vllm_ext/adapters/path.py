"""A variant as a path: `FOLDER?sub=r16` is what vLLM carries as `lora_path` from the API server to its workers. It is
a part of the key of cached prefixes, too: `FOLDER?sub=r16&v=1a2b3c4d` tells an adapter from what was there before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_ext.adapters.names import AdapterName, parse_name

MARK, VERSION = "?sub=", "&v="


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
