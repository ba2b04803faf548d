"""The compiled library: finding it, choosing the back end, giving its operators to torch.

The library knows no header of torch and is linked against nothing of it. It asks here for the addresses of the few
functions it calls, all of torch's stable C interface (torch/csrc/stable/c/shim.h, torch >= 2.10), so one build serves
every later torch.

`SQFT_KERNEL=scalar|avx2|avx512|amx|neon|torch` forces a path, "torch" being reference.py; it is read once, when the
operators are first used.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sqft_plugins.errors import KernelError, nearest
from sqft_plugins.variables import KERNEL

NAMES = ("scalar", "avx2", "avx512", "amx", "neon")
"""The back ends, numbered as in csrc/kernel.h."""
FALLBACK = "torch"
FILE = Path(__file__).with_name("libsqft_kernels.so")
INTERFACE = 2
"""`SQFT_INTERFACE` of csrc/kernel.h; a library of another number was built from other sources."""
BUILD = "python -m sqft_plugins.kernels.build"
_Find = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)


@dataclass(frozen=True)
class Library:
    """What serves the operators. handle: None where that is plain torch. why: for the user."""

    handle: ctypes.CDLL | None
    why: str

    @property
    def path(self) -> str:
        """The name of the back end in use."""
        if self.handle is None:
            return FALLBACK
        forced = self.handle.sqft_forced()
        return NAMES[forced if forced >= 0 else self.handle.sqft_best()]

    def supported(self) -> list[str]:
        """The compiled back ends that this processor runs."""
        if self.handle is None:
            return []
        return [name for number, name in enumerate(NAMES) if self.handle.sqft_supported(number)]


def built() -> str:
    """For which machine the library was compiled, and by what; empty where nothing beside it says so."""
    try:
        facts = json.loads(FILE.with_suffix(".json").read_text(encoding="utf-8"))
        sets = ", ".join(["scalar", *facts["instruction_sets"]])
        return f"for {facts['architecture']} with {sets}, by {facts['compiler']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@cache
def library() -> Library:
    """What `choose` finds, its operators registered with torch, once a process. Raises KernelError as `choose` does."""
    found = choose()
    if found.handle is None:
        return found
    missing = found.handle.sqft_register(_Find(_address_of_torch))
    if missing is None:
        return found

    import torch

    return _without(f"torch {torch.__version__} lacks {missing.decode()}")


def choose() -> Library:
    """The library and its back end, found without torch.

    Raises KernelError for a `SQFT_KERNEL` that is unknown, or that this machine cannot run.
    """
    wanted = os.environ.get(KERNEL) or None
    if wanted not in (None, FALLBACK, *NAMES):
        raise KernelError(f"{KERNEL}={wanted!r} is no kernel: {nearest(str(wanted), (*NAMES, FALLBACK))}")
    if wanted == FALLBACK:
        return Library(None, f"plain torch, as {KERNEL} says")
    handle, problem = _open()
    if handle is None:
        return _without(problem)

    loaded = Library(handle, "")
    if wanted is None:
        return Library(handle, f"the fastest of {', '.join(loaded.supported())} here")
    if wanted not in loaded.supported():
        raise KernelError(
            f"{KERNEL}={wanted} does not run here: this library on this processor has {', '.join(loaded.supported())}"
        )
    handle.sqft_force(NAMES.index(wanted))
    return Library(handle, f"as {KERNEL} says")


def _without(problem: str) -> Library:
    """Plain torch, because the library has that problem. Raises KernelError where `SQFT_KERNEL` asks for a library."""
    wanted = os.environ.get(KERNEL)
    if wanted:
        raise KernelError(f"{KERNEL}={wanted} cannot be used, {problem}: build the kernels with `{BUILD}`")
    return Library(None, f"plain torch, slow: {problem}; build the kernels with `{BUILD}`")


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Within it every call takes the compiled back end `name`, in all threads. Raises KernelError where it cannot."""
    handle = library().handle
    if handle is None or name not in library().supported():
        raise KernelError(f"kernel={name!r} does not run here: {', '.join(library().supported()) or library().why}")
    before = handle.sqft_forced()
    handle.sqft_force(NAMES.index(name))
    try:
        yield
    finally:
        handle.sqft_force(before)


def _open() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why not."""
    if sys.byteorder != "little":
        return None, "the packed form needs a little-endian processor"
    if not FILE.is_file():
        return None, f"{FILE.name} was not built"
    try:
        handle = ctypes.CDLL(str(FILE))
    except OSError as error:
        return None, f"{FILE.name} cannot be loaded ({error})"
    if not hasattr(handle, "sqft_interface") or handle.sqft_interface() != INTERFACE:
        return None, f"{FILE.name} was built from other sources"

    pointer, number = ctypes.c_void_p, ctypes.c_int64
    handle.sqft_pack_masks.argtypes = [pointer, number, number, pointer, pointer]
    handle.sqft_pack_masks.restype = number
    handle.sqft_pack_values.argtypes = [pointer, number, number, pointer, pointer, pointer]
    handle.sqft_unpack.argtypes = [pointer, pointer, pointer, pointer, number, number, number, pointer, pointer]
    handle.sqft_register.argtypes = [_Find]
    handle.sqft_register.restype = ctypes.c_char_p
    return handle, ""


def _address_of_torch(name: bytes) -> int | None:
    function = getattr(_torch_library(), name.decode(), None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


@cache
def _torch_library() -> ctypes.CDLL:
    import torch

    suffix = "dylib" if sys.platform == "darwin" else "so"  # there are no kernels for Windows: build.py
    file = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    return ctypes.CDLL(str(file) if file.exists() else file.name)  # it is loaded already: this only finds it
