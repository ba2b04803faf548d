"""The C functions that llama-cpp-python wraps, and llama.cpp's log, which is kept instead of printed."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from typing import Any

from gguf_ext.backend import install
from gguf_ext.errors import missing_package

WARNING, ERROR, CONTINUED = 3, 4, 5
"""ggml.h, enum ggml_log_level; CONTINUED is the rest of the line before."""
OUTCOME = "failed to load model"
"""What llama.cpp logs last of a file that it refuses, after the line with the cause."""
_log: deque[tuple[int, str]] = deque(maxlen=16)
_backend: dict[str, Any] = {}


def library() -> Any:
    """The module `llama_cpp`. Its log goes where it went only for a `Llama(verbose=True)`; else its last errors are
    kept for `last_error`. Raises DependencyError."""
    if "module" not in _backend:
        try:
            import llama_cpp
        except ImportError as error:
            raise missing_package("llama-cpp-python") from error
        from llama_cpp._logger import llama_log_callback, logger

        _backend["module"] = llama_cpp

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def keep(level: int, text: bytes, data: Any) -> None:
            _keep(level, text.decode("utf-8", errors="replace"))
            if logger.level == logging.DEBUG:  # what verbose=True sets
                llama_log_callback(level, text, data)

        _backend["log"] = keep  # C holds a bare pointer: the object must stay alive
        llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        install()  # before the first model: see there
    return _backend["module"]


def forget_errors() -> None:
    """Before a call that may fail: what is logged from here on is about it."""
    _log.clear()


def last_error() -> str:
    """Why llama.cpp failed since `forget_errors`, for a message of ours: its errors in the order it met them, the cause
    before what came of it; its last warning where it logged no error."""
    errors = [line for level, line in _log if level == ERROR and line]
    causes = [line for line in errors if OUTCOME not in line] or errors
    warnings = [line for level, line in _log if level != ERROR and line]
    reason = "; ".join(dict.fromkeys(causes)) or (warnings[-1] if warnings else "no reason given")
    return reason if len(reason) <= 300 else f"{reason[:300]}…"


def _keep(level: int, text: str) -> None:
    line = " ".join(text.split())
    if level != CONTINUED:
        _backend["kept"] = level in (WARNING, ERROR) or "error" in text.lower()
        if _backend["kept"]:
            _log.append((level, line))
    elif _backend.get("kept") and _log:
        before, begun = _log.pop()
        _log.append((before, f"{begun} {line}".strip()))
