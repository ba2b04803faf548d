"""What a server of `sqft serve` does not answer, or only to those who have its key. vLLM's `--middleware` takes these.

vLLM 0.32 asks for its --api-key below /v1, /v2, /inference and /cohere only: /invocations generates, /tokenize reads,
/scale_elastic_ep stops the server, without it. And resolving adapters by name needs
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`, which opens `/v1/load_lora_adapter` too: it takes any path on the server's disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_ext.variables import VLLM_KEY

CLOSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")
"""The last is the same by Amazon SageMaker's name, which vLLM serves as well."""
MESSAGE = "adapters are served by name from the directory that the server was started with (sqft serve --adapters)"
OPEN = ("/health", "/ping", "/metrics", "/version", "/load")
"""What is answered without the key: whether the server lives, and counts. Nothing of what it is asked."""
NO_KEY = "this server wants its key: Authorization: Bearer KEY"

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class NoRuntimeLoading:
    """ASGI middleware: 403 for the closed endpoints, everything else passes."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not closed(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await _answer(send, 403, MESSAGE, "PermissionDeniedError")


class KeyEverywhere:
    """ASGI middleware: where the server has keys, 401 without one of them, for everything but OPEN."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS" or is_open(scope):
            await self.app(scope, receive, send)
            return
        keys = keys_of(scope)
        if not keys or _has_key(scope, keys):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": NO_KEY})
        else:
            await _answer(send, 401, NO_KEY, "AuthenticationError")


def closed(path: str) -> bool:
    """Whether `path`, decoded as ASGI hands it over, is one of the closed endpoints or below it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    joined = "/" + "/".join(parts)
    return any(joined == end or joined.endswith(end) or f"{end}/" in joined for end in CLOSED)


def is_open(scope: Message) -> bool:
    """Whether a request needs no key. Any other spelling of a path needs one."""
    return scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) in OPEN


def keys_of(scope: Message) -> list[str]:
    """The keys that vLLM was started with, by its own rule: --api-key, wherever it was given, else VLLM_API_KEY."""
    arguments = getattr(getattr(scope.get("app"), "state", None), "args", None)
    given = getattr(arguments, "api_key", None) or [os.environ.get(VLLM_KEY)]
    return [key for key in given if key]


def _has_key(scope: Message, keys: list[str]) -> bool:
    found = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    scheme, _, key = (found[0] if found else b"").decode("latin-1").partition(" ")
    digest = _digest(key)
    # all are compared, in constant time: the time does not tell which one is near
    matches = [secrets.compare_digest(digest, _digest(known)) for known in keys]
    return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _answer(send: Any, status: int, message: str, kind: str) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
