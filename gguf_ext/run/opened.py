"""A model of llama.cpp of a file, stock or compact.

llama.cpp opens a compact file through a stream that reads like the stock file it stands for
(`llama_model_load_from_file_ptr` over glibc's `fopencookie`): it asks for one tensor after the other, and each is made
when it is asked for. So memory holds one tensor's blocks beside what llama.cpp keeps, and nothing is written to disk.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf_ext.errors import GGUFError, RuntimeFailedError
from gguf_ext.stock import StockFile, is_compact

BUFFER = 1 << 20
"""Bytes that are read at once of a header; tensors come whole."""
_READ = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_SEEK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_here = threading.local()


class _Functions(ctypes.Structure):
    """cookie_io_functions_t of stdio.h."""

    _fields_ = (("read", _READ), ("write", _WRITE), ("seek", _SEEK), ("close", _CLOSE))


def model_from_file(c: Any, path: bytes, settings: Any) -> Any:
    """`llama_model_load_from_file` for either kind → the model, None where llama.cpp refuses it. c: the module
    `llama_cpp`. Raises GGUFError for a compact file that cannot be read, RuntimeFailedError where the system has no
    such streams."""
    name = os.fsdecode(path)
    if not is_compact(name):
        return c.llama_model_load_from_file(path, settings)
    with _stream(StockFile(name)) as (stream, failed):
        settings.load_mode = c.LLAMA_LOAD_MODE_NONE  # a stream cannot be mapped
        model = c.llama_model_load_from_file_ptr(stream, settings)
    if failed:
        if model:
            c.llama_model_free(model)
        raise failed[0]
    return model


@contextmanager
def opening(c: Any) -> Iterator[None]:
    """Within, llama-cpp-python's classes open compact files too, on this thread: they call the function by its name."""
    from llama_cpp import llama_cpp as low  # where its classes look the function up

    if not hasattr(low.llama_model_load_from_file, "sqft"):
        stock = low.llama_model_load_from_file

        def load(path: bytes, settings: Any, /) -> Any:
            return model_from_file(c, path, settings) if getattr(_here, "opening", False) else stock(path, settings)

        load.sqft = True  # type: ignore[attr-defined]
        low.llama_model_load_from_file = load
    _here.opening = True
    try:
        yield
    finally:
        _here.opening = False


@contextmanager
def _stream(stock: StockFile) -> Iterator[tuple[int, list[GGUFError]]]:
    """A FILE* over the stock file's bytes, and what went wrong while it was read."""
    failed: list[GGUFError] = []
    at = 0

    @_READ  # type: ignore[untyped-decorator]
    def read(cookie: Any, target: int, size: int) -> int:
        nonlocal at
        try:
            piece = stock.read(at, size)
        except GGUFError as error:
            failed.append(error)
            return -1
        ctypes.memmove(target, piece, len(piece))
        at += len(piece)
        return len(piece)

    @_SEEK  # type: ignore[untyped-decorator]
    def seek(cookie: Any, offset: Any, whence: int) -> int:
        nonlocal at
        goal = offset[0] + (0, at, stock.size)[whence]
        if goal < 0:
            return -1
        at = offset[0] = goal
        return 0

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "fopencookie"):
        raise RuntimeFailedError(
            f"{stock.file.path} is compact, and this system has no streams to open it by: write the stock file with "
            f"`sqft export gguf {stock.file.path} --expand`"
        )
    libc.fopencookie.restype = ctypes.c_void_p
    libc.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
    stream = libc.fopencookie(None, b"r", _Functions(read=read, seek=seek))
    libc.setvbuf(ctypes.c_void_p(stream), None, 0, ctypes.c_size_t(BUFFER))  # _IOFBF
    try:
        # the kernels' library finds the tensors in the file itself: it must be open
        with open(Path(stock.file.path), "rb"):
            yield stream, failed
    finally:
        libc.fclose(ctypes.c_void_p(stream))
