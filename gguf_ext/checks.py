"""Rows for `sqft doctor`: the packages of this surface, and whether llama.cpp runs on this processor."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

from gguf_ext.errors import INSTALL
from sqft_plugins.plugins.packages import package_check
from sqft_plugins.plugins.protocols import Check

REBUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python'
PROBE = """
import ctypes, sys
system_info = ctypes.CDLL(sys.argv[1]).llama_print_system_info
system_info.restype = ctypes.c_char_p
print(system_info().decode())
"""
"""Loads the library by its path: importing llama_cpp costs NumPy."""
FITS = "from gguf_ext.backend import install; print(install().why)"
PROBE_SECONDS = 60


def checks() -> list[Check]:
    """One row a package; llama.cpp is loaded in a process of its own, because a wrong build dies with SIGILL."""
    rows = [
        package_check("gguf", INSTALL),
        package_check("llama-cpp-python", f'CMAKE_ARGS="-DGGML_NATIVE=OFF" {INSTALL}'),
    ]
    if rows[-1].status == "ok":
        rows += [_processor(), _backend()]
    return rows


def _backend() -> Check:
    """Our library for llama.cpp: there or not. Whether it fits this llama.cpp is asked in a process of its own."""
    from gguf_ext.backend.load import BUILD, FILE, built

    name = "sparse in llama.cpp"
    if not FILE.is_file():
        return Check(name, "missing", f"{FILE.name} was not built, llama.cpp computes alone", BUILD)
    try:
        done = subprocess.run(
            [sys.executable, "-c", FITS], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, "wrong", f"does not load within {PROBE_SECONDS} s", BUILD)
    found = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode or found:
        return Check(name, "wrong", f"llama.cpp computes alone: {found or f'code {done.returncode}'}"[:160], BUILD)
    return Check(name, "ok", f"{FILE.name}, {built() or 'built by hand'}")


def _processor() -> Check:
    name = "llama.cpp build"
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec and spec.submodule_search_locations) or ()]
    library = next((file for folder in folders for file in sorted(folder.glob("*llama.*"))), None)
    if library is None:
        return Check(name, "wrong", "llama-cpp-python has no library of llama.cpp", REBUILD)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(library)],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, "wrong", f"does not load within {PROBE_SECONDS} s", REBUILD)

    if done.returncode == -signal.SIGILL:
        return Check(name, "wrong", "dies with SIGILL: built for another processor", REBUILD)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check(name, "wrong", f"does not load: {last[:120]}", REBUILD)

    features = [
        part.split("=")[0].strip()
        for part in done.stdout.replace("CPU :", "|").split("|")
        if part.strip().endswith("= 1")
    ]
    if any(feature.startswith("AMX") for feature in features):
        # seen: a -march=native build on an AMX machine dies with SIGILL (tilezero) at the first token
        return Check(name, "wrong", "built with AMX, which can die with SIGILL at the first token", REBUILD)
    return Check(name, "ok", ", ".join(features))
