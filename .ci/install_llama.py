"""llama-cpp-python compiled for this CPU: its flags, the compiler, the wheel that is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from install_common import ROOT, VENV, InstallError, pip, say
from install_jobs import Installer

LLAMA_LOG = VENV / "llama-build.log"
WHEELS = ROOT / ".cache" / "llama-cpp-python"

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
# Read by CMake after the package has switched `common` on. Nothing in Python uses it: a third of the compile time.
NO_COMMON = 'set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build common utils library" FORCE)\n'


def cmake_flags(system: str, machine: str, cpuinfo: str) -> list[str]:
    """The CMake options for llama.cpp: never `-march=native`, on x86 Linux only what every core of this CPU can do."""
    options = ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF"]
    cores = [set(line.split(":", 1)[1].split()) for line in cpuinfo.splitlines() if re.match(r"flags\s*:", line)]
    if system != "Linux" or machine not in ("x86_64", "AMD64", "i686") or not cores:
        return options
    flags = set.intersection(*cores)
    return options + [f"-D{option}={'ON' if needed <= flags else 'OFF'}" for option, needed in GGML_FLAGS.items()]


def cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cmake_args() -> str:
    """CMAKE_ARGS for the build. The user's own come last and so win."""
    ours = shlex.join(cmake_flags(platform.system(), platform.machine(), cpuinfo()))
    return f"{ours} {os.environ.get('CMAKE_ARGS', '')}".strip()


def check_compiler() -> None:
    """A C++ compiler that can compile, not just a name on the PATH (macOS has a stub, some images no headers)."""
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


def wheel_folder(llama: str, args: str) -> Path:
    """Where the wheel of that version for that CPU is kept; it is moved there when it is whole."""
    key = hashlib.sha256(f"{args} {platform.machine()}".encode()).hexdigest()[:12]
    return WHEELS / f"{llama}-{key}"


def build_llama(installer: Installer, llama: str, args: str) -> Callable[[], Path]:
    """Starts to compile llama-cpp-python unless there is a wheel for these CPU flags → a function that waits for it."""
    folder = wheel_folder(llama, args)
    if wheels := list(folder.glob("*.whl")):
        say(f"llama.cpp was compiled for this CPU before: {wheels[0].relative_to(ROOT)}")
        return lambda: wheels[0]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hook = partial / "no_common.cmake"
    hook.write_text(NO_COMMON)
    env = {**os.environ, "CMAKE_ARGS": f"{args} {shlex.quote(f'-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}')}"}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # make's job server is not ninja's
        env.pop(name, None)
    # --no-cache-dir: pip's cache of wheels does not know CMAKE_ARGS, and would hand out one compiled for another CPU.
    command = pip("wheel", "-v", "--progress-bar=off", "--no-deps", "--no-cache-dir", "--no-binary=llama-cpp-python")
    say(f"CPU: CMAKE_ARGS={args}")
    installer.run_behind(
        "compiling llama.cpp", [*command, f"--wheel-dir={partial}", f"llama-cpp-python=={llama}"], LLAMA_LOG, env
    )
    job = installer.behind
    assert job is not None

    def wait() -> Path:
        installer.wait(job)
        (partial / "cmake-args.txt").write_text(args + "\n")
        partial.rename(folder)
        return next(folder.glob("*.whl"))

    return wait
