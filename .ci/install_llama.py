"""llama-cpp-python compiled for this CPU: its flags, the compiler, the wheel that is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from install_common import InstallError, say, take_lock
from install_jobs import Installer
from install_lanes import Lane
from install_tool import pip

HOOK = Path(__file__).with_name("llama.cmake")
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
WHEELS = Path(os.environ.get("SQFT_WHEELS") or USER_CACHE / "sqft").absolute() / "llama-cpp-python"
"""Compiled wheels, shared by all checkouts of this user."""

# CMake option of ggml → the flags of /proc/cpuinfo that it needs. AMX is never built: ggml's AMX code dies with SIGILL
# (`tilezero`) at the first token unless the process asked the kernel for the tiles, which llama-cpp-python does not do.
GGML_FLAGS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_BMI2": {"bmi2"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VBMI": {"avx512f", "avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512f", "avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512f", "avx512_bf16"},
}


def cmake_flags(cpuinfo: str) -> list[str]:
    """The CMake options for llama.cpp: never `-march=native`, and of x86's instruction sets what every core can do.

    cpuinfo: the text of /proc/cpuinfo; only x86 has lines of flags there.
    """
    options = ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF"]
    cores = [set(line.split(":", 1)[1].split()) for line in cpuinfo.splitlines() if re.match(r"flags\s*:", line)]
    if not cores:
        return options
    flags = set.intersection(*cores)
    return options + [f"-D{option}={'ON' if needed <= flags else 'OFF'}" for option, needed in GGML_FLAGS.items()]


def cmake_args() -> str:
    """CMAKE_ARGS for the build. The user's own come last and so win."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cmake_flags(cpuinfo.read_text(errors="replace") if cpuinfo.exists() else "")
    return f"{shlex.join(flags)} {os.environ.get('CMAKE_ARGS', '')}".strip()


def check_compiler() -> str:
    """What the C++ compiler calls itself. It must be able to compile, not just be a name on the PATH (macOS has a stub,
    some images no headers)."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    compiler = next((found for found in map(shutil.which, [*named, "c++", "g++", "clang++"]) if found), None)
    if not compiler:
        raise InstallError("no C++ compiler (c++, g++, clang++ or $CXX): install one, on Debian `apt-get install g++`")
    tried = subprocess.run(
        [compiler, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"],
        input="#include <vector>\nint main() {}\n",
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        reason = (tried.stderr.strip() or "no message").splitlines()[0]
        raise InstallError(f"{compiler} cannot compile ({reason}): repair it, on Debian `apt-get install g++`")
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]


def wheel_folder(llama: str, args: str, compiler: str) -> Path:
    """Where the wheel of that version is kept, for that CPU, that compiler with its flags, and this C library."""
    flags = [f"{name}={os.environ[name]}" for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS") if os.environ.get(name)]
    made_from = [args, HOOK.read_text(), compiler, platform.machine(), *platform.libc_ver(), *flags]
    return WHEELS / f"{llama}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]}"


def kept_wheel(folder: Path) -> Path | None:
    """The wheel in `folder`, if it is there and whole; a damaged one is reported."""
    for wheel in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (OSError, zipfile.BadZipFile, zlib.error):
            pass
        say(f"{wheel} is damaged: llama.cpp is compiled anew")
    return None


def build_llama(installer: Installer, lane: Lane, llama: str, args: str, compiler: str) -> Callable[[], Path]:
    """Starts to compile llama-cpp-python unless its wheel is kept → a function that waits for the wheel.

    Checkouts share the wheels: one compiles while others wait, and a wheel is moved to its place when it is whole.
    """
    held = take_lock(WHEELS / "lock", f"another install compiles into {WHEELS}, waiting for it")
    folder = wheel_folder(llama, args, compiler)
    if wheel := kept_wheel(folder):
        say(f"llama.cpp was compiled for this CPU before: {wheel}")
        os.close(held)
        return lambda: wheel

    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (folder, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)  # `clean-wheels` may have removed the folder while we waited
    # Of two values the last one counts, so the user's come behind ours.
    env = {**os.environ, "CMAKE_ARGS": f"{shlex.quote(f'-DCMAKE_PROJECT_llama.cpp_INCLUDE={HOOK}')} {args}"}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # make's job server is not ninja's
        env.pop(name, None)
    # --no-cache-dir: pip's cache of wheels does not know CMAKE_ARGS, and would hand out one compiled for another CPU.
    quiet = ("-v", "--progress-bar=off")
    command = pip(lane.python, "wheel", *quiet, "--no-deps", "--no-cache-dir", "--no-binary=llama-cpp-python")
    say(f"CPU: CMAKE_ARGS={args}")
    job = installer.run_behind(
        "compiling llama.cpp",
        [*command, f"--wheel-dir={partial}", f"llama-cpp-python=={llama}"],
        lane.venv / "llama-build.log",
        env,
    )

    def wait() -> Path:
        installer.wait(job)
        partial.rename(folder)
        os.close(held)
        return next(folder.glob("*.whl"))

    return wait
