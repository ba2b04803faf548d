"""What a file says of the adapters that were merged into it: `sqft.merges`, strings of JSON, the oldest first."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gguf_ext.errors import DamagedFileError
from gguf_ext.header import ARRAY, STRING
from gguf_ext.reader import GGUFFile

KEY = "sqft.merges"
UNKNOWN = "0" * 64
"""In place of a SHA-256 that is not known while the header is written."""


def merges_of(file: GGUFFile) -> list[dict[str, Any]]:
    """The notes of all merges into a file, none of a file as it was downloaded. Raises DamagedFileError for an entry
    that holds something else."""
    lines = file.metadata.get(KEY, [])
    try:
        notes = [json.loads(line) for line in lines]
    except (TypeError, ValueError):
        notes = [None]
    if not isinstance(lines, list) or not all(isinstance(note, dict) for note in notes):
        raise DamagedFileError(f"{file.path}: {KEY} does not hold the notes of merges: take the original file again")
    return notes


def entry_bytes(notes: Sequence[Mapping[str, Any]]) -> bytes:
    """The entry as it stands in a file: its key, and an array of strings. Empty where there are no notes."""
    if not notes:
        return b""
    lines = [json.dumps(note, sort_keys=True) for note in notes]
    kinds = struct.pack("<IIQ", ARRAY, STRING, len(lines))
    return _string(KEY) + kinds + b"".join(map(_string, lines))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
