"""A server to be started: its command, its environment, and how to reach it. Imports next to nothing.

The words of a command line are read here (`given`, `option_of`, `words_of`).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqft_plugins.hiding import hide, hide_variables
from vllm_ext.variables import VLLM_KEY


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
