"""Requirements of pyproject.toml and the pins of a lane: pure functions, tested in tests/ci/test_install_pins.py."""

from __future__ import annotations

import re
from collections.abc import Iterable

from install_common import InstallError


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


def pin(pins: str, name: str) -> str:
    """The pinned version of a package, which is the same for every Python."""
    match = re.search(rf"^{re.escape(name)}==(\S+)", pins, re.MULTILINE | re.IGNORECASE)
    if not match:
        raise InstallError(f"no {name}==VERSION is pinned: `make lock`")
    return match[1]


def pin_lines(pins: str) -> list[str]:
    return [line for line in pins.splitlines() if line and not line.startswith("#")]


def pins_of(pins: str, wanted: Iterable[str]) -> str:
    """The pins of these requirements, and of torch."""
    names = {"torch", *map(requirement_name, wanted)}
    return "".join(f"{line}\n" for line in pin_lines(pins) if requirement_name(line) in names)


def without_pins(pins: str, names: set[str]) -> str:
    return "".join(f"{line}\n" for line in without(pin_lines(pins), names))
