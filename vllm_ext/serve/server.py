"""A server to be started: its command, its environment, and how to reach it. Imports next to nothing."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_ext.serve.options import given
from vllm_ext.serve.secrets import hide, hide_variables

DEFAULT_SLOTS = 4
"""Adapters in one batch; vLLM's own default is 1."""


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
        return given(self.command, "--api-key") or bool(os.environ.get("VLLM_API_KEY"))

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
