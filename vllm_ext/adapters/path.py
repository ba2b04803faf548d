"""A variant as a path: `FOLDER?sub=r16` is what vLLM carries as `lora_path` from the API server to its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_ext.adapters.names import AdapterName, parse_name

MARK = "?sub="


@dataclass(frozen=True)
class Variant:
    """folder: the adapter. rank: as in AdapterName, None for the default."""

    folder: Path
    rank: str | None = None

    def __str__(self) -> str:
        return f"{self.folder}{MARK}{self.rank or ''}"


def parse_path(lora_path: str) -> Variant | None:
    """The variant behind a `lora_path`, None where it is a plain folder. Raises AdapterNameError for a rank that cannot
    be one."""
    folder, mark, rank = lora_path.rpartition(MARK)
    if not mark:
        return None
    return Variant(Path(folder), parse_name(str(AdapterName("x", rank))).rank if rank else None)
