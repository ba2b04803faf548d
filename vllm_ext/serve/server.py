"""A server to be started: its command, its environment, and how to reach it. Imports next to nothing.

The words of a command line are read here (`given`, `option_of`, `words_of`), and what nobody else should read is shown
as *** (`hide`, `hide_variables`) wherever one of ours is shown.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_ext.variables import VLLM_KEY

DEFAULT_SLOTS = 4
"""Adapters in one batch; vLLM's own default is 1."""
HIDDEN = "***"
SECRET = re.compile(
    r"(?:^|[-_.])(?:key|keys|token|secret|password|passwd|passphrase|credentials?|watermark-config)$", re.I
)
"""The ends of names that hold secrets: --api-key, --hf-token, "aws_secret_access_key", --ssl-keyfile-password."""
LISTED = ("--api-key", "--hf-token", "--watermark-config")
"""vLLM's own (0.33: `common.startup._SENSITIVE_ARG_FIELDS`), which argparse takes cut short as well."""
URL = re.compile(r"(\w+://)[^/@\s]+@")


@dataclass(frozen=True)
class Server:
    """command: the words to run. environment: what is added to that of this process. host, port: where it listens.
    name: by which the base is served."""

    command: list[str]
    environment: dict[str, str]
    host: str
    port: int
    name: str
    notes: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if given(self.command, '--ssl-certfile') else 'http'}://{host}:{self.port}"

    @property
    def has_key(self) -> bool:
        """Whether clients need vLLM's --api-key, as far as the command line says."""
        return given(self.command, "--api-key") or bool(os.environ.get(VLLM_KEY))

    def shell(self) -> str:
        """The command as it can be pasted into a shell, without secrets."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in hide_variables(self.environment).items()]
        return " ".join([*variables, shlex.join(hide(self.command))])

    def curl(self, name: str) -> str:
        """One request to `name`, to be pasted into a shell."""
        key = " -H 'Authorization: Bearer KEY'" if self.has_key else ""
        body = json.dumps({"model": name, "prompt": "Question: What do bees make?\nAnswer:", "max_tokens": 8})
        return f"curl -s {self.url}/v1/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"

    def as_dict(self) -> dict[str, Any]:
        """For others to read: without secrets."""
        shown = {"command": hide(self.command), "environment": hide_variables(self.environment), "url": self.url}
        return {**asdict(self), **shown}


def given(words: Sequence[str], option: str) -> bool:
    """Whether `option` ("--max-loras") is among the words, as `--max-loras 4`, `--max-loras=4` or with underscores."""
    return any(_name(word) == option for word in words)


def option_of(words: Sequence[str], option: str) -> str | None:
    """The value of the last `option`, None where it is not there."""
    return next(iter(words_of(words, option)), None)


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
