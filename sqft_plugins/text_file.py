"""Text files of users, and the JSON in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqft_plugins.errors import SQFTError


def read_text(path: str | Path, argument: str, wanted: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    wanted: what to give in its place, such as "give a JSONL". Raises SQFTError where it is missing or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise SQFTError(f"{argument} {path} is not a file: {wanted}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SQFTError(
            f"{argument} {path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it"
        ) from error


def json_lines(text: str, where: str) -> Iterator[tuple[Any, str]]:
    """The value of each line of a JSONL that is not blank, with its place in words: `where` and the number of the line.
    Raises SQFTError that names the line."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold other line ends within a text
        if line.strip():
            place = f"{where} line {number}"
            yield parse_json(line, place), place


def parse_json(text: str, where: str) -> Any:
    """Raises SQFTError, which says `where`, for what is no JSON or holds half of a character."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise SQFTError(f"{where} has half of a character ({half}), which is no text: correct or remove it") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise SQFTError(f"{where} is not JSON ({getattr(error, 'msg', error)}): correct or remove it") from error
    return value
