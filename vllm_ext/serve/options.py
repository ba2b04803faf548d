"""Words of a command line that is handed on."""

from __future__ import annotations

from collections.abc import Sequence


def given(words: Sequence[str], option: str) -> bool:
    """Whether `option` ("--max-loras") is among the words, as `--max-loras 4`, `--max-loras=4` or with underscores."""
    return any(_name(word) == option for word in words)


def option_of(words: Sequence[str], option: str) -> str | None:
    """The last value of `option`, None where it is not there."""
    value = None
    for index, word in enumerate(words):
        if _name(word) == option:
            value = word.partition("=")[2] if "=" in word else next(iter(words[index + 1 : index + 2]), None)
    return value


def words_of(words: Sequence[str], option: str) -> list[str]:
    """The values of the last `option` that takes several, `--served-model-name a b`; empty where it is not there."""
    values: list[str] = []
    begun = False
    for word in words:
        if word.startswith("-"):
            begun = _name(word) == option
            values = ([word.partition("=")[2]] if "=" in word else []) if begun else values
        elif begun:
            values.append(word)
    return values


def _name(word: str) -> str:
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name
