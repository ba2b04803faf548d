"""Text files of users."""

from __future__ import annotations

from pathlib import Path

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
