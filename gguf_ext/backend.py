"""The C functions that llama-cpp-python wraps, and llama.cpp's log, which is kept instead of printed."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from typing import Any

from gguf_ext.errors import missing_package

_log: deque[str] = deque(maxlen=8)
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

        @llama_cpp.llama_log_callback
        def keep(level: int, text: bytes, data: Any) -> None:
            if level in (3, 4) or b"error" in text.lower():
                _log.append(text.decode("utf-8", errors="replace").strip())
            if logger.level == logging.DEBUG:  # what verbose=True sets
                llama_log_callback(level, text, data)

        _backend["log"] = keep  # C holds a bare pointer: the object must stay alive
        llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return _backend["module"]


def last_error() -> str:
    """llama.cpp's last warning or error, for a message of ours."""
    lines = [line for line in _log if line]
    return lines[-1][:200] if lines else "no reason given"
