"""Other packages, by their metadata: nothing is imported to know whether they are there and of which version."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sqft_plugins.plugins.protocols import Check


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package → version, of those that are there."""
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def asked_range(package: str, by: str) -> SpecifierSet:
    """The versions of `package` that the installed package `by` asks for, in its requirements or those of an extra; any
    version where it asks for none, or is not installed itself."""
    try:
        lines = importlib.metadata.requires(by) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    asked = (Requirement(line) for line in lines)
    return next((line.specifier for line in asked if line.name == package and line.specifier), SpecifierSet())


def declared_range(package: str) -> SpecifierSet:
    """The versions of a package that pyproject.toml of this project asks for."""
    return asked_range(package, by="sqft-plugins")


def why_not_imported(module: str) -> str | None:
    """The last line of what importing a module ends with, None where it works. It costs a process of its own."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    return (done.stderr.strip() or "no message").splitlines()[-1] if done.returncode else None


def package_check(package: str, remedy: str, wanted: SpecifierSet | None = None) -> Check:
    """The row of `sqft doctor` for a package: "missing", "wrong" where its version is outside the range, else "ok".

    remedy: the command that installs it. wanted: the range, `declared_range` where it is None.
    """
    found = installed([package]).get(package)
    if found is None:
        return Check(package, "missing", "not installed", remedy)
    wanted = declared_range(package) if wanted is None else wanted
    if not wanted.contains(found, prereleases=True):
        return Check(package, "wrong", f"{found}, outside {wanted}", remedy)
    return Check(package, "ok", found)
