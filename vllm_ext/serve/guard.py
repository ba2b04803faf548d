"""Closes the endpoints by which anyone could have the server load a folder of his choice.

Resolving adapters by name needs `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`, which opens `/v1/load_lora_adapter` too: it takes
any path on the server's disk. `sqft serve` hands this class to vLLM's `--middleware`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

CLOSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")
"""The last is the same by Amazon SageMaker's name, which vLLM serves as well."""
MESSAGE = "adapters are served by name from the directory that the server was started with (sqft serve --adapters)"

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class NoRuntimeLoading:
    """ASGI middleware: 403 for the closed endpoints, everything else passes."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not closed(scope["path"]):
            await self.app(scope, receive, send)
            return
        body = json.dumps({"error": {"message": MESSAGE, "type": "PermissionDeniedError", "code": 403}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def closed(path: str) -> bool:
    """Whether `path`, decoded as ASGI hands it over, is one of the closed endpoints or below it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    joined = "/" + "/".join(parts)
    return any(joined == end or joined.endswith(end) or f"{end}/" in joined for end in CLOSED)
