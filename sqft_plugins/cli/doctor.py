"""sqft doctor: what this machine and environment have, ready to paste into a bug report."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqft_plugins.cli.common import emit, examples, json_option, table

if TYPE_CHECKING:
    from sqft_plugins.plugins.protocols import Check

CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bf16", "amx_int8")
"""What the kernels of llama.cpp, vLLM and this project ask for."""
EXTRAS = {"peft_ext": "peft", "vllm_ext": "vllm", "gguf_ext": "gguf"}
"""Our surfaces and the extra that each needs: without it a surface is not broken, only not installed."""


def machine_checks() -> Iterator[Check]:
    """Python, system, CPU, memory, compiler."""
    from sqft_plugins.kernels.build import BuildError, find_compiler
    from sqft_plugins.plugins.protocols import Check

    yield Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Check("system", "ok", platform.platform())
    yield Check("CPU", "ok", _cpu())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", "ok", f"{cores}{_threads()}")
    yield Check("memory", "ok", _memory())
    try:
        compiler = find_compiler()
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
        yield Check("C++ compiler", "ok", f"{' '.join(compiler)} ({''.join(version)})")
    except BuildError as error:
        remedy = "apt-get install g++ (it compiles llama-cpp-python and the INT4 kernels)"
        yield Check("C++ compiler", "missing", str(error), remedy)


def core_checks() -> Iterator[Check]:
    """The packages that the core cannot do without, against the ranges of pyproject.toml."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    from sqft_plugins._version import VERSION
    from sqft_plugins.plugins.protocols import Check

    yield Check("sqft-plugins", "ok", f"{VERSION} ({Path(__file__).parents[2]})")
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("sqft-plugins") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check("sqft-plugins", "wrong", "not installed, only on the path", "make install, or pip install -e .")
        declared = []
    ranges = {requirement.name: requirement.specifier for requirement in declared if requirement.marker is None}
    for name in ("torch", "transformers", "compressed-tensors"):
        wanted = ranges.get(name, SpecifierSet())
        remedy = f"pip install '{name}{wanted}'"
        try:
            importlib.import_module(name.replace("-", "_"))
            version = importlib.metadata.version(name)
        except Exception as error:  # a package may fail at import in any way: report it
            yield Check(name, "wrong", f"cannot be imported: {type(error).__name__}: {_line(error)}", remedy)
            continue
        if not wanted.contains(version, prereleases=True):
            yield Check(name, "wrong", f"{version}, outside {wanted}", remedy)
        else:
            yield Check(name, "ok", version + (_accelerator() if name == "torch" else ""))
    yield kernel_check()


def kernel_check() -> Check:
    """The back end of the sparse INT4 operators on the CPU, and why it is that one."""
    from sqft_plugins.plugins.protocols import Check

    try:
        from sqft_plugins.kernels.library import BUILD, FALLBACK, VARIABLE, library

        kernels = library()
    except Exception as error:  # SQFT_KERNEL may be wrong, and torch may be broken
        return Check("INT4 kernel", "wrong", _line(error), "correct or unset SQFT_KERNEL")
    found = f"{kernels.path}: {kernels.why}"
    if kernels.path == FALLBACK and VARIABLE not in os.environ:
        return Check("INT4 kernel", "missing", found, BUILD)
    return Check("INT4 kernel", "ok", found)


def plugin_checks() -> Iterator[Check]:
    """The rows of the plug-ins, then the plug-ins that are broken."""
    from sqft_plugins.cli.plugins import listing
    from sqft_plugins.plugins import get_manager
    from sqft_plugins.plugins.protocols import Check

    for hook in get_manager().hook.sqft_checks.get_hookimpls():
        try:
            rows: Iterable[Check] = hook.function()  # type: ignore[assignment]
            yield from rows
        except Exception as error:  # its other rows are lost, everybody else's are not
            remedy = f"update or uninstall the package of {hook.plugin_name}"
            yield Check(hook.plugin_name, "wrong", f"its check fails: {type(error).__name__}: {_line(error)}", remedy)
    for plugin in listing():
        name, why = plugin["name"], plugin["broken"]
        if why and name in EXTRAS and why.startswith("ModuleNotFoundError"):
            yield Check(name, "missing", why, f"pip install 'sqft-plugins[{EXTRAS[name]}]'")
        elif why:
            yield Check(name, "wrong", f"broken plug-in: {why}", f"update or uninstall {plugin['package'] or name}")
    if "SQFT_PLUGINS" in os.environ:
        yield Check("SQFT_PLUGINS", "ok", f"{os.environ['SQFT_PLUGINS']!r}: other plug-ins are not loaded")


def _cpu() -> str:
    model, flags = platform.processor() or platform.machine(), ""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
        values = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = values.get("model name", model), values.get("flags", "")
    except (OSError, ValueError):
        pass
    has = [flag for flag in CPU_FLAGS if flag in flags.split()]
    return f"{model}, {platform.machine()}" + (f": {' '.join(has) or 'no vector extensions'}" if flags else "")


def _threads() -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    return f" (OMP_NUM_THREADS={threads})" if threads else ""


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
        return f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB free"
    except (OSError, KeyError):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{pages / 2**30:.1f} GiB"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return ", no GPU"


def _line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


@click.command(
    epilog=examples(
        "sqft doctor",
        "sqft doctor --json > doctor.json",
        "SQFT_PLUGINS=none sqft doctor             # the core alone",
    )
)
@json_option
def command(as_json: bool) -> int:
    """Check the environment. Exit code 1 when something is wrong; what is missing is optional, its remedy is shown."""
    checks = [*machine_checks(), *core_checks(), *plugin_checks()]
    wrong = sum(check.status == "wrong" for check in checks)

    def show() -> None:
        table(("check", "status", "found"), [(check.name, check.status, check.found) for check in checks])
        for check in checks:
            if check.remedy:
                click.echo(f"{check.name} is {check.status}: {check.remedy}")
        click.echo("Nothing is wrong." if not wrong else f"{wrong} wrong.")

    emit(as_json, {"ok": not wrong, "checks": [asdict(check) for check in checks]}, show)
    return 1 if wrong else 0
