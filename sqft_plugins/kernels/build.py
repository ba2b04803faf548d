"""Compiling the kernels: csrc/*.cpp → libsqft_kernels.so beside this file, and libsqft_kernels.json, which says for
which machine. The same for their door into llama.cpp, gguf_ext/backend/libggml_sqft.so, which opens the former.

`pip install` does it (pyproject.toml names `BuildKernels`), and so do `python -m sqft_plugins.kernels.build` and
`python -m gguf_ext.backend.build`. Any C++17 compiler will do, torch's headers are not needed. Without one, or where it
fails, a notice says so and the installation goes on: plain torch then serves the operators, and llama.cpp computes
alone. Each instruction set has its own source and flags and is chosen when the program runs, so what is built here runs
on every processor of this architecture; a set that the compiler does not know is left out. The library asks for symbols
of glibc 2.14 and GCC 5 at most (manylinux_2_24; torch itself wants 2_28), and has no Python in it, so that one wheel
serves every Python. libstdc++ and libgcc stay shared: exceptions of torch unwind through these functions.

setuptools loads this file by its path, before anything is installed: only the standard library and setuptools here, and
where it runs by hand the latter may not be there (uv makes environments without it).
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

try:
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
except ModuleNotFoundError:
    bdist_wheel = build_ext = object

FACTS = ".json"
"""What takes the place of .so in the name of the file beside the library."""
SOURCES = Path(__file__).with_name("csrc")
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=default", "-Wall")
"""-ffp-contract=off: every back end gives the same bits, whatever the compiler would fuse."""
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vbmi", "vbmi2", "vnni")))
FLAGS = {
    "avx2": ("x86_64", AVX2),
    "avx512": ("x86_64", AVX512),
    "amx": ("x86_64", (*AVX512, "-mamx-tile", "-mamx-int8")),
    "neon": ("aarch64", ("-march=armv8.2-a+dotprod",)),
}
"""Source → the architecture and the flags of its instruction set; every other source has none of its own."""
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class Library(NamedTuple):
    """One shared library: its sources, more flags for the compiler and for the linker, and what serves without it."""

    sources: Path
    flags: tuple[str, ...]
    links: tuple[str, ...]
    without: str


KERNELS, DOOR = "libsqft_kernels", "libggml_sqft"
LIBRARIES = {
    KERNELS: Library(SOURCES, (), (), "plain torch will serve the sparse INT4 kernels, slowly"),
    DOOR: Library(
        Path(__file__).parents[2] / "gguf_ext/backend/csrc",
        ("-fvisibility=hidden", f"-I{SOURCES}"),
        ("-ldl", "-pthread"),
        "llama.cpp will compute alone",
    ),
}


class BuildError(Exception):
    """Why there is no library, in one line."""


def find_compiler() -> list[str]:
    """`CXX`, or the first C++ compiler on the path. Raises BuildError."""
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"CXX={named} is not there" if named else "no C++ compiler: apt-get install g++")


def build(target: Path, extra: tuple[str, ...] = (), machine: str = "", name: str = KERNELS) -> list[str]:
    """Compiles the library `name` into the file `target` and returns the instruction sets that it has.

    `target` with the ending .json then says the same, and architecture and compiler. extra: more flags for every
    source and the linker, such as -fsanitize=address. machine: the architecture compiled for, this one's where it is
    empty. Raises BuildError.
    """
    if sys.platform == "win32":
        raise BuildError("they are for Linux and macOS")
    compiler = find_compiler()
    machine = machine or platform.machine().lower()
    machine = ARCHITECTURES.get(machine, machine)

    sets = []
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        library = LIBRARIES[name]
        optional = [library.sources / f"{each}.cpp" for each in FLAGS]
        there = sorted(library.sources.glob("*.cpp"))
        for source in [*sorted(set(there) - set(optional)), *(file for file in optional if file in there)]:
            architecture, flags = FLAGS.get(source.stem, (machine, ()))
            if architecture != machine:
                continue

            made = Path(scratch) / f"{source.stem}.o"
            command = [*compiler, *COMMON, *library.flags, *flags, *extra, "-c", str(source), "-o", str(made)]
            problem = _run(command)
            if problem is None:
                objects.append(str(made))
                sets += [source.stem] * (source.stem in FLAGS)
            elif source.stem in FLAGS:
                notice(f"{source.name} is left out, {compiler[0]} does not compile it: {problem}")
            else:
                raise BuildError(f"{compiler[0]} does not compile {source.name}: {problem}")

        linked = Path(scratch) / f"{name}.so"
        problem = _run([*compiler, "-shared", *extra, *objects, *library.links, "-o", str(linked)])
        if problem is not None:
            raise BuildError(f"{compiler[0]} does not link {linked.name}: {problem}")

        facts = {"architecture": machine, "instruction_sets": sets, "compiler": version_of(compiler)}
        described = linked.with_suffix(FACTS)
        described.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        for made, place in ((linked, target), (described, target.with_suffix(FACTS))):
            beside = place.with_name(f"{place.name}.{os.getpid()}")
            shutil.copyfile(made, beside)
            os.replace(beside, place)  # a process that has the old library open keeps it
    return sets


def version_of(compiler: list[str]) -> str:
    """The first line that it says of itself."""
    try:
        shown = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    except OSError as error:
        return str(error)
    return shown[0] if shown else "no version"


def notice(text: str) -> None:
    """One line on stderr; pip and uv show it with -v, and where a build fails."""
    print(f"sqft-plugins: {text}", file=sys.stderr, flush=True)


class BuildKernels(build_ext):  # type: ignore[misc]  # setuptools has no types
    """setuptools' command. An extension of pyproject.toml stands for a library, which is no Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: object) -> None:
        target = Path(self.get_ext_fullpath(ext.name))  # type: ignore[attr-defined]
        try:
            notice(f"compiled {target} ({named(build(target, name=target.stem))})")
        except BuildError as error:
            for old in (target, target.with_suffix(FACTS)):  # of an earlier build in the same folder
                old.unlink(missing_ok=True)
            notice(f"{target.name} is not compiled, {LIBRARIES[target.stem].without}: {error}")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for ext in self.extensions:
            inside = Path(self.get_ext_filename(ext.name)).with_suffix(FACTS)
            if (facts := Path(self.build_lib) / inside).is_file():
                self.copy_file(str(facts), str(Path(self.get_ext_fullpath(ext.name)).with_suffix(FACTS)))


class NameWheel(bdist_wheel):  # type: ignore[misc]
    """One wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def named(sets: list[str]) -> str:
    return ", ".join(sets) or "no instruction set but the plain one"


def _run(command: list[str]) -> str | None:
    """None, or the first line of interest of what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
    return lines[0].strip()[:300]


def main(name: str = KERNELS) -> int:
    target = LIBRARIES[name].sources.with_name(f"{name}.so")
    try:
        sets = build(target, name=name)
    except BuildError as error:
        notice(str(error))
        return 1
    print(f"{target}: {named(sets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
