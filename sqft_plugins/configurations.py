"""Saved rank configurations: `configurations/NAME.json` in an adapter folder, {module name or pattern: rank}.

`sqft search` writes them; `--rank FILE` of every verb and the server's `ADAPTER@NAME` read them, all through this file.
Patterns and their order are `sqft_plugins.elastic.configuration`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.elastic import NAMED_RANKS
from sqft_plugins.errors import CheckpointError, SQFTError, nearest

FOLDER = "configurations"
DEFAULT = "default"
"""The configuration of this name, where a folder carries it, is what the adapter's plain name means."""
MAX_BYTES = 4 << 20
"""Of one file. A configuration of 1,000 layers has 50 kB."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RANK = re.compile(r"r?\d+")


def check_configuration_name(name: str) -> str:
    """The name as it is. Raises SQFTError for a name that is no plain file name, and for the name of a rank."""
    if not _NAME.fullmatch(name):
        raise SQFTError(
            f"configuration name {name[:80]!r} is not usable: up to 64 letters, digits, '_', '.', '-', a letter or "
            "digit first"
        )
    if name in NAMED_RANKS or _RANK.fullmatch(name):
        raise SQFTError(f"configuration name {name!r} is the name of a rank: choose another")
    return name


def saved_configurations(adapter: str | Path) -> dict[str, Path]:
    """Name → file of each configuration that an adapter folder carries, in name order. A file with another kind of name
    is not a configuration."""
    folder = Path(adapter) / FOLDER
    if not folder.is_dir():
        return {}
    files = sorted(file for file in folder.glob("*.json") if file.is_file())
    return {file.stem: file for file in files if _usable(file.stem)}


def saved_configuration(adapter: str | Path, name: str) -> dict[str, int]:
    """The configuration of that name. Raises SQFTError naming those there are."""
    files = saved_configurations(adapter)
    if name not in files:
        raise SQFTError(f"adapter {adapter} has no configuration {name[:80]!r}: {nearest(name[:80], files)}")
    return read_configuration(files[name])


def read_configuration(file: str | Path) -> dict[str, int]:
    """{module name or pattern: rank} from a JSON file. Raises CheckpointError for a file of anything else."""
    remedy = 'write {"module name or pattern": rank, …}'
    ranks = read_object(Path(file), remedy, most_bytes=MAX_BYTES)
    if not ranks or not all(type(rank) is int for rank in ranks.values()):
        raise CheckpointError(f"{file} is no configuration of ranks: {remedy}")
    return ranks


def _usable(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name not in NAMED_RANKS and not _RANK.fullmatch(name)


def write_configuration(
    file: str | Path, ranks: Mapping[str, int], overwrite: bool = False, argument: str = "--out"
) -> Path:
    """Writes {module name: rank} as one of the files above, beside and renamed. Raises OutputExistsError."""
    from sqft_plugins.checkpoint.files import write_file  # imports all of transformers

    with write_file(file, overwrite, argument) as target:
        target.write_text(json.dumps(dict(ranks), indent=2) + "\n")
    return Path(file)
