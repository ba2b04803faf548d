"""Rows for `sqft doctor`: the packages of this surface, and whether llama.cpp runs on this processor."""

from __future__ import annotations

import importlib.metadata
import re
import signal
import subprocess
import sys

from gguf_ext.errors import INSTALL
from sqft_plugins.plugins.protocols import Check

RANGES = {"gguf": ((0, 19), (0, 20)), "llama-cpp-python": ((0, 3, 36), (0, 4))}
"""Package → first version supported, first one not."""
REBUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python'
PROBE = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
PROBE_SECONDS = 60


def checks() -> list[Check]:
    """One row a package; llama.cpp is loaded in a process of its own, because a wrong build dies with SIGILL."""
    rows = [_version("gguf", INSTALL), _version("llama-cpp-python", f'CMAKE_ARGS="-DGGML_NATIVE=OFF" {INSTALL}')]
    if rows[-1].status == "ok":
        rows.append(_processor())
    return rows


def _version(package: str, remedy: str) -> Check:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, "missing", "not installed", remedy)
    low, high = RANGES[package]
    parts = tuple(map(int, re.findall(r"\d+", found.partition("+")[0])[:3]))  # 0.3.36+cu124 is 0.3.36
    if low <= parts < high:
        return Check(package, "ok", found)
    wanted = ".".join(map(str, low))
    return Check(package, "wrong", f"{found}, wanted >={wanted},<{'.'.join(map(str, high))}", remedy)


def _processor() -> Check:
    name = "llama.cpp build"
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
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
