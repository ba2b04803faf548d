"""sqft doctor: what this machine and environment have, ready to paste into a bug report.

Files and metadata are looked at and nothing heavy is imported, so that it answers at once. `--deep` imports what can
only be judged so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import click

from sqft_plugins._version import VERSION
from sqft_plugins.cli.common import table
from sqft_plugins.cli.verb import Found, verb
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import machine_facts, nvidia_gpus, variable
from sqft_plugins.plugins.packages import declared_range, installed, package_check, why_not_imported
from sqft_plugins.plugins.protocols import Check
from sqft_plugins.settings import Settings, option
from sqft_plugins.variables import KERNEL, PLUGINS

CORE = {"torch": "torch", "transformers": "transformers", "compressed-tensors": "compressed_tensors"}
"""Package → module, of those that the core cannot do without."""
CANARY = "python -m sqft_plugins.canary"


def machine_checks() -> Iterator[Check]:
    """Python, system, CPU, memory, compiler."""
    from sqft_plugins.kernels.build import BuildError, find_compiler, version_of

    yield from (Check(name, "ok", found) for name, found in machine_facts().items())
    try:
        compiler = find_compiler()
        yield Check("C++ compiler", "ok", f"{' '.join(compiler)} ({version_of(compiler)})")
    except BuildError as error:
        remedy = "apt-get install g++ (it compiles llama-cpp-python and the INT4 kernels)"
        yield Check("C++ compiler", "missing", str(error), remedy)


def core_checks(deep: bool = False) -> Iterator[Check]:
    """The packages that the core cannot do without, against the ranges of pyproject.toml, and the INT4 kernel."""
    yield Check("sqft-plugins", "ok", f"{VERSION} ({Path(__file__).parents[2]})")
    if not installed(["sqft-plugins"]):
        yield Check("sqft-plugins", "wrong", "not installed, only on the path", "pip install -e . in its folder")

    for package, module in CORE.items():
        remedy = f"pip install '{package}{declared_range(package)}'"
        check = package_check(package, remedy)
        problem = "its files are not there" if find_spec(module) is None else why_not_imported(module) if deep else None
        if check.status == "missing" or (check.status == "ok" and problem is not None):
            check = Check(package, "wrong", f"cannot be imported: {problem or check.found}", remedy)
        if check.status == "ok" and package == "torch":
            check = replace(check, found=check.found + _accelerator(check.found, deep))
        yield check
    yield kernel_check(deep)


def kernel_check(deep: bool = False) -> Check:
    """The back end of the sparse INT4 operators on the CPU, and why it is that one.

    deep: whether torch takes the operators, too.
    """
    from sqft_plugins.kernels.library import BUILD, FALLBACK, built, choose, library

    try:
        kernels = library() if deep else choose()
    except SQFTError as error:
        return Check("INT4 kernel", "wrong", _line(error), f"correct or unset {KERNEL}")
    except Exception as error:  # torch may be broken in any way
        return Check("INT4 kernel", "wrong", _line(error), "pip install --force-reinstall torch")
    found = f"{kernels.path}: {kernels.why}"
    if kernels.path == FALLBACK and KERNEL not in os.environ:
        return Check("INT4 kernel", "missing", found, BUILD)
    made = built() if kernels.handle is not None else ""
    return Check("INT4 kernel", "ok", f"{found}; built {made}" if made else found)


def plugin_checks(deep: bool = False) -> Iterator[Check]:
    """The rows of the plug-ins, then the plug-ins that are broken."""
    from sqft_plugins.cli.plugins import listing
    from sqft_plugins.plugins import get_manager

    for hook in get_manager().hook.sqft_checks.get_hookimpls():
        try:
            rows: Iterable[Check] = hook.function(*[deep for _ in hook.argnames])  # type: ignore[assignment]
            yield from rows
        except Exception as error:  # its other rows are lost, everybody else's are not
            remedy = f"update or uninstall the package of {hook.plugin_name}"
            yield Check(hook.plugin_name, "wrong", f"its check fails: {type(error).__name__}: {_line(error)}", remedy)

    for plugin in listing():
        name, why = plugin["name"], plugin["broken"]
        if why:
            yield Check(name, "wrong", f"broken plug-in: {why}", f"update or uninstall {plugin['package'] or name}")
    if PLUGINS in os.environ:
        yield Check(PLUGINS, "ok", f"{os.environ[PLUGINS]!r}: other plug-ins are not loaded")


def _accelerator(version: str, deep: bool) -> str:
    """The GPUs: those that torch uses (deep), or those that the driver lists and this build of torch may use."""
    if deep:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    else:
        names = [] if version.endswith("+cpu") else nvidia_gpus()
    found = f"{len(names)} x {names[0]}" if names else "no GPU"
    return f", {found}{variable('CUDA_VISIBLE_DEVICES')}"


def _line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def canary_checks() -> Iterator[Check]:
    """A row for each package of other projects whose names we touch."""
    from sqft_plugins.canary import compare, lists

    for result in compare(lists()):
        if result.version is not None:
            shown = "; ".join(map(str, (*result.moved[:1], *result.known)))
            found = f"{result.summary}: {shown}" if shown else result.summary
            name, remedy = f"names of {result.package} ({result.surface})", f"{CANARY} lists what breaks"
            yield Check(name, "wrong" if result.moved else "ok", found, remedy if result.moved else "")


class DoctorSettings(Settings):
    deep: bool = option(False, "Import the packages, too: it finds those that are there but broken.")


@verb(
    "sqft doctor",
    "sqft doctor --deep                        # also import what is installed: takes some seconds",
    "sqft doctor --json > doctor.json",
    "SQFT_PLUGINS=none sqft doctor             # the core alone",
    settings=DoctorSettings,
)
def command(settings: DoctorSettings) -> Found:
    """Check the environment. Exit code 1 when something is wrong; what is missing is optional, its remedy is shown."""
    deep = settings.deep
    checks = [*machine_checks(), *core_checks(deep), *plugin_checks(deep), *(canary_checks() if deep else ())]
    wrong = sum(check.status == "wrong" for check in checks)

    def show() -> None:
        table(("check", "status", "found"), [(check.name, check.status, check.found) for check in checks])
        for check in checks:
            if check.remedy:
                click.echo(f"{check.name} is {check.status}: {check.remedy}")
        if not deep:
            click.echo(f"What the installed versions of other projects may have moved: sqft doctor --deep, or {CANARY}")
        click.echo("Nothing is wrong." if not wrong else f"{wrong} wrong.")

    return Found({"ok": not wrong, "checks": [asdict(check) for check in checks]}, show, code=int(wrong > 0))
