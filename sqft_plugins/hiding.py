"""What nobody else should read is shown as ***: keys, tokens and passwords, wherever a command line is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
SECRET = re.compile(
    r"(?:^|[-_.])(?:key|keys|token|secret|password|passwd|passphrase|credentials?|watermark-config)$", re.I
)
"""The ends of names that hold secrets: --api-key, --hf-token, "aws_secret_access_key", --ssl-keyfile-password."""
LISTED = ("--api-key", "--hf-token", "--watermark-config")
"""vLLM's own (0.33: `common.startup._SENSITIVE_ARG_FIELDS`), which argparse takes cut short as well."""
URL = re.compile(r"(\w+://)[^/@\s]+@")
QUERY = re.compile(r"([?&][\w.-]*(?:key|token|secret|signature|password|credential)=)[^&\s'\"]+", re.I)
"""A secret in the query of a URL, as signed links have it."""
TOKEN = re.compile(r"\b(?:hf_|sk-|gh[a-z]_|github_pat_|glpat-|xox[a-z]-)[\w-]{8,}|(?<=Bearer )\S+")
"""Tokens that are known by how they begin, and what follows `Bearer`."""
SHORTEST = 6
"""Characters of a variable's value, from which on it is looked for in a text: a shorter one would hide words."""


def hide(words: Sequence[str]) -> list[str]:
    """The words, with *** for each value of a secret option, of a secret key in a JSON value, and of the user and the
    password in a URL."""
    shown, secret = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            secret = _is_secret(name)
            shown.append(f"{name}={HIDDEN if secret else _value(value)}" if equals else word)
        else:
            shown.append(HIDDEN if secret else _value(word))
    return shown


def hide_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for environment variables."""
    return {name: HIDDEN if SECRET.search(name) else _value(value) for name, value in environment.items()}


def hide_in_text(text: str, environment: Mapping[str, str]) -> str:
    """The same for any text, in which the values of `environment`'s secret variables are hidden, too."""
    values = {value for name, value in environment.items() if SECRET.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(value, HIDDEN)
    text = URL.sub(rf"\1{HIDDEN}@", text)
    return TOKEN.sub(HIDDEN, QUERY.sub(rf"\1{HIDDEN}", text))


def _is_secret(option: str) -> bool:
    name = option.replace("_", "-")
    short = any(whole.startswith(name) and len(name) > whole.index("-", 2) + 1 for whole in LISTED)
    return bool(SECRET.search(name)) or short


def _value(text: str) -> str:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(_json(json.loads(text)))
        except ValueError:
            return text
    return URL.sub(rf"\1{HIDDEN}@", text)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if SECRET.search(key) else _json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return URL.sub(rf"\1{HIDDEN}@", value) if isinstance(value, str) else value
