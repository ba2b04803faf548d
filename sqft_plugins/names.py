"""Module names and the patterns that pick them: for layers left out, for settings of single layers, for ranks.

A pattern is a whole module name ("model.layers.0.mlp.up_proj"), its dotted end ("mlp.up_proj", "up_proj"), or a regular
expression over the whole name (".*mlp.*").
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from sqft_plugins.errors import SQFTError

T = TypeVar("T")


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` is `name`, its dotted end, or a regular expression over all of it. Raises re.error."""
    return name == pattern or name.endswith("." + pattern) or re.fullmatch(pattern, name) is not None


def select(patterns: Iterable[str], names: Sequence[str], argument: str, kind: str = "layer") -> list[str]:
    """The names that any of the patterns matches, in the order of `names`.

    argument: what the user wrote the patterns behind, such as "--exclude". kind: what the names are, for messages.
    Raises SQFTError for a pattern that matches nothing (it names the nearest) or is no valid regular expression.
    """
    chosen = {name for pattern in patterns for name in _matched(pattern, names, argument, kind)}
    return [name for name in names if name in chosen]


def resolve(
    overrides: Mapping[str, T], names: Sequence[str], default: T, argument: str, kind: str = "layer"
) -> dict[str, T]:
    """{name: the value of the last pattern that matches it, else `default`} for every name, in the order of `names`.

    overrides: pattern → value, each used at least once: raises SQFTError as `select` does.
    """
    result = dict.fromkeys(names, default)
    for pattern, value in overrides.items():
        result.update(dict.fromkeys(_matched(pattern, names, argument, kind), value))
    return result


def _matched(pattern: str, names: Sequence[str], argument: str, kind: str) -> list[str]:
    try:
        matched = [name for name in names if matches(pattern, name)]
    except re.error as error:
        raise SQFTError(
            f"{argument} {pattern!r} is no valid regular expression ({error}): "
            "give a name, its dotted end, or an expression such as '.*mlp.*'"
        ) from error
    if not matched:
        raise SQFTError(f"{argument} {pattern!r} matches no {kind}: {_nearest(pattern, names)}")
    return matched


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "there is none, remove it"
    ends = {name.split(".", skip)[-1] for name in names for skip in range(name.count(".") + 1)}
    close = difflib.get_close_matches(pattern, sorted(ends), n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"correct it, one is called {names[0]!r}"
