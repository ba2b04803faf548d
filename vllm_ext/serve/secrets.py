"""What a command line holds that nobody else should read: shown as *** wherever one of ours is shown."""

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
"""vLLM's own (0.32: `api_utils._SENSITIVE_ARG_FIELDS`), which argparse takes cut short as well."""
URL = re.compile(r"(\w+://)[^/@\s]+@")


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
