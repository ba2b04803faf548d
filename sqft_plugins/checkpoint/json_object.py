"""JSON files that others wrote, such as config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqft_plugins.errors import CheckpointError

REMEDY = "copy the model again"
"""What to do about a damaged file of a model folder."""


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, which ends with `remedy`, for a file that holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8 or no JSON is a ValueError
        raise CheckpointError(f"{file} is not JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no JSON object but {type(found).__name__}: {remedy}")
    return found
