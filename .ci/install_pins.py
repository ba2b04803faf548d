"""Requirements of pyproject.toml and pins of constraints.txt: pure functions, tested in tests/ci/test_install.py."""

from __future__ import annotations

import re
from collections.abc import Iterable

from install_common import InstallError

LOCK_HEADER = """\
# The one file of pins: every package of a finished `test` environment (CPU build of vLLM, Python 3.11).
# To move a pin: edit its line (or delete it, and pip takes the newest that fits), `make test`, then `make lock`.
# Made by `make lock` from the packages in .venv, without this one and pip, local versions such as +cpu cut off.
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """`Foo_bar[x]>=1; marker` → `foo-bar`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if not match:
        raise InstallError(f"requirement {requirement!r} has no name: repair pyproject.toml")
    return canonical(match[0])


def requirements(project: dict, extras: Iterable[str]) -> list[str]:
    """The requirements of the project with these extras, `sqft-plugins[a,b]` inside them resolved."""
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop(0)]:
            inner = re.match(r"[A-Za-z0-9._-]+\s*\[([^]]*)\]", requirement)
            if inner and requirement_name(requirement) == canonical(project["name"]):
                waiting += [extra.strip() for extra in inner[1].split(",")]
            else:
                found[requirement] = None
    return list(found)


def without(wanted: Iterable[str], names: set[str]) -> list[str]:
    """The requirements whose package is not one of `names`."""
    return [requirement for requirement in wanted if requirement_name(requirement) not in names]


def applicable(lines: Iterable[str]) -> list[str]:
    """Requires-Dist lines of an installed package → those whose marker holds here, markers and extras cut off."""
    from packaging.requirements import Requirement

    found = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            found.append(str(requirement))
    return found


def pin(constraints: str, name: str) -> str:
    """The pinned version of a package."""
    match = re.search(rf"^{re.escape(name)}==(\S+)", constraints, re.MULTILINE | re.IGNORECASE)
    if not match:
        raise InstallError(f"constraints.txt pins no {name}: add a line {name}==VERSION")
    return match[1]


def pins_of(constraints: str, wanted: Iterable[str]) -> str:
    """The lines of constraints.txt for these requirements."""
    names = {"torch", *map(requirement_name, wanted)}
    return "".join(f"{line}\n" for line in constraints.splitlines() if canonical(line.split("==")[0]) in names)


def lock_text(freeze: str) -> str:
    """`pip list --format=freeze` → constraints.txt."""
    pins = {}
    for line in freeze.splitlines():
        name, found, version = line.strip().partition("==")
        if found and canonical(name) not in ("pip", "wheel", "sqft-plugins"):
            pins[canonical(name)] = version.split("+")[0]
    return LOCK_HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
