"""Putting the library into llama.cpp, and asking it what it does.

The library is loaded into the llama.cpp of llama-cpp-python by llama.cpp's own `ggml_backend_load`, and is asked there
about every weight of every model that this process loads, by whatever Python class. Importing this file imports neither
llama_cpp nor torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_ext.errors import GGUFError, missing_package
from sqft_plugins.kernels.library import FALLBACK, NAMES
from sqft_plugins.progress import say
from sqft_plugins.variables import KERNEL

FILE = Path(__file__).with_name("libggml_sqft.so")
BUILD = "python -m gguf_ext.backend.build"
COUNTS = ("matmuls", "tokens", "tensors", "source_bytes", "packed_bytes", "kept", "weights", "ambiguous")
"""The counters, numbered as in csrc/door.h."""
_state: dict[str, Any] = {}


@dataclass(frozen=True)
class SparseBackend:
    """Whether weights are kept sparse from now on.

    why: "" where they are, else one line with the reason: llama.cpp then computes alone.
    kernel: the back end of the kernels, "" without one.
    """

    why: str
    kernel: str

    @property
    def active(self) -> bool:
        return not self.why


def install() -> SparseBackend:
    """Loads the library into llama.cpp, once a process, and takes no weight yet. It must come before the first model:
    llama.cpp asks for the list of buffer types once. Raises DependencyError."""
    if "found" not in _state:
        _state["found"] = _load()
        if _library() is not None and os.environ.get("GGML_BACKEND_PATH") != str(FILE):
            _library().sqft_ggml_switch(0)
    return _state["found"]


def enable(density: float | None = None) -> SparseBackend:
    """From here on llama.cpp multiplies sparse Q4_0 weights with our kernels, in every model that this process loads,
    such as by `llama_cpp.Llama`; models that are loaded already stay as they are.

        gguf_ext.enable()
        llm = llama_cpp.Llama("math-int4.gguf")

    density: the largest share of weights other than 0 at which a tensor is kept sparse; None for what was measured to
    be faster on this kind of processor; 1.0 for every Q4_0 tensor.

    Where it cannot be done, such as with another version of llama.cpp, one line says why and all goes on as without it.
    Raises GGUFError for a density that is no share, DependencyError without llama-cpp-python.
    """
    if density is not None and not 0 <= density <= 1:
        raise GGUFError(f"density={density} is no share of weights: give 0 to 1, or none for what was measured")
    found = install()
    tell_why(found)
    if (library := _library()) is not None:
        library.sqft_ggml_density(ctypes.c_double(-1 if density is None else density))
        library.sqft_ggml_switch(1)
    return found


def disable() -> None:
    """The models that are loaded from now on are llama.cpp's alone."""
    if (library := _library()) is not None:
        library.sqft_ggml_switch(0)


@contextlib.contextmanager
def choosing(sparse: bool) -> Iterator[None]:
    """Whether models that this thread loads within have their sparse weights kept sparse, whatever the process does."""
    library = _library()
    if library is None:
        yield
        return
    library.sqft_ggml_here(int(sparse))
    try:
        yield
    finally:
        library.sqft_ggml_here(-1)


def tell_why(found: SparseBackend) -> None:
    """One line, once a process, where the library cannot be used."""
    if not found.active and "told" not in _state:
        _state["told"] = True
        say(f"llama.cpp computes without the sparse kernels: {found.why}")


def held() -> dict[str, int]:
    """What the library counts.

    matmuls, tokens: multiplications by a sparse weight so far, and tokens in them.
    tensors, weights, kept: that are in memory as sparse weights now; source_bytes: in the file; packed_bytes: here.
    ambiguous: tensors that were left to llama.cpp, because two open files have one of that name.
    """
    library = _library()
    return {name: library.sqft_ggml_count(number) if library else 0 for number, name in enumerate(COUNTS)}


def _library() -> Any:
    """The library where it takes weights, else None."""
    return _state.get("library")


def _load() -> SparseBackend:
    try:
        import llama_cpp
    except ImportError as error:
        raise missing_package("llama-cpp-python") from error
    if os.environ.get(KERNEL) == FALLBACK:
        return SparseBackend(f"{KERNEL}={FALLBACK} asks for no compiled kernel", "")
    if sys.byteorder != "little":
        return SparseBackend("the packed form needs a little-endian processor", "")
    if not FILE.is_file():
        return SparseBackend(f"{FILE.name} was not built; build it with `{BUILD}`", "")

    # llama.cpp's own functions by the handle of its library: the same files lie there under further names, and each
    # name would be loaded as a library of its own
    folder = Path(str(llama_cpp.__file__)).parent / "lib"
    llama = next((file for name in ("libllama.so", "libllama.dylib") if (file := folder / name).is_file()), None)
    if llama is None:
        return SparseBackend(f"llama-cpp-python has no libllama in {folder}", "")
    loader = ctypes.CDLL(str(llama))
    if not hasattr(loader, "ggml_backend_load"):
        return SparseBackend(f"{llama.name} has no ggml_backend_load", "")

    # its notices become `why`; those that come later go through `say`
    try:
        library = ctypes.CDLL(str(FILE))
    except OSError as error:
        return SparseBackend(f"{FILE.name} cannot be loaded ({error})", "")
    library.sqft_ggml_count.restype = ctypes.c_int64
    library.sqft_ggml_why.restype = ctypes.c_char_p
    told: list[str] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
    def tell(line: bytes) -> None:
        told.append(line.decode(errors="replace"))
        if "found" in _state:
            say(told[-1])

    _state["tell"] = tell  # C holds a bare pointer: the object must stay alive
    library.sqft_ggml_say(tell)
    loader.ggml_backend_load.restype = ctypes.c_void_p
    loaded = loader.ggml_backend_load(os.fsencode(FILE))
    path = library.sqft_ggml_path()
    kernel = NAMES[path] if path >= 0 else ""
    why = library.sqft_ggml_why().decode()
    if not loaded:
        return SparseBackend("llama.cpp refuses the library: its backends have another interface", kernel)
    if not why:
        _state["library"] = library
    return SparseBackend(why, kernel)


def built() -> str:
    """For which machine the library was compiled, and by what; empty where nothing beside it says so."""
    try:
        facts = json.loads(FILE.with_suffix(".json").read_text(encoding="utf-8"))
        return f"for {facts['architecture']}, by {facts['compiler']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
