"""JSON files that others wrote, such as config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqft_plugins.errors import CheckpointError

REMEDY = "copy the model again"
"""What to do about a damaged file of a model folder."""


def read_object(file: Path, remedy: str, name: str | None = None, most_bytes: int | None = None) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, which ends with `remedy`, for a file that holds none.

    name: what messages call the file; its path where it is None.
    most_bytes: a larger file is refused without being read.
    """
    name = name or str(file)
    if most_bytes is not None and file.is_file() and file.stat().st_size > most_bytes:
        raise CheckpointError(f"{name} has more than {most_bytes >> 20} MiB: {remedy}")

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8 or no JSON is a ValueError
        raise CheckpointError(f"{name} is not JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no JSON object but {type(found).__name__}: {remedy}")
    return found
