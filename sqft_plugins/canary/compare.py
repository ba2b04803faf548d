"""What is installed, compared with what our code relies on."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

from packaging.specifiers import SpecifierSet

from sqft_plugins.canary.code import derived, modules_of
from sqft_plugins.canary.sources import find, forget, load, parameters
from sqft_plugins.hardware import uncollected
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Probe, Touch, Upstream


@dataclass(frozen=True)
class Moved:
    """name: of theirs, or what should hold. how: what is different. loss: what breaks. used: the place in our code.
    copes: how our code lives with it."""

    name: str
    how: str
    loss: str
    used: str = ""
    copes: str = ""

    def __str__(self) -> str:
        place = f" ({self.used})" if self.used else ""
        return f"{self.name}: {self.how}. {f'Known: {self.copes}' if self.copes else f'Without it: {self.loss}'}{place}"


@dataclass(frozen=True)
class Compared:
    """One package of another project, as one of ours uses it.

    surface: our package. package: theirs. version: None where it is not installed; then nothing was compared.
    seen: the versions in which everything was in its place. names: how many were looked for. known: those that are
    otherwise, too, and no fault.
    """

    surface: str
    package: str
    version: str | None
    seen: str
    names: int
    moved: tuple[Moved, ...]
    known: tuple[Moved, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether this version is outside those that were seen."""
        return self.version is not None and not SpecifierSet(self.seen).contains(self.version, prereleases=True)

    @property
    def summary(self) -> str:
        """How many are in their place, and whether anybody has seen this version."""
        in_place = f"all {self.names - len(self.known)} in their place"
        parts = [f"{len(self.moved)} of {self.names} moved" if self.moved else in_place]
        parts += [f"{len(self.known)} otherwise, and known"] if self.known else []
        parts += [f"newer or older than those seen ({self.seen})"] if self.is_new else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Broken:
    """A plug-in whose list cannot be had, or read. why: its error."""

    plugin: str
    why: str

    @property
    def result(self) -> Compared:
        moved = Moved("sqft_upstream", f"fails: {self.why}", "nothing that this plug-in touches is looked for")
        return Compared(self.plugin, self.plugin, version_of(self.plugin) or "0", "", 1, (moved,))


def lists() -> list[Upstream | Broken]:
    """Those of all plug-ins, through the hook `sqft_upstream`."""
    found: list[Upstream | Broken] = []
    for hook in reversed(get_manager().hook.sqft_upstream.get_hookimpls()):
        try:
            found += cast(Iterable[Upstream], hook.function())
        except Exception as error:  # its list is lost, everybody else's are not
            found.append(Broken(hook.plugin_name, _line(error)))
    return found


def compare(upstreams: Iterable[Upstream | Broken], probe: bool = True) -> list[Compared]:
    """A result for each package of each surface. probe: run what has to be tried out, too: it imports the packages."""
    _forget()
    results = []
    for upstream in upstreams:
        if isinstance(upstream, Broken):
            results.append(upstream.result)
            continue
        try:
            with uncollected():  # syntax trees are many small objects: 3 CPU-seconds, and 7 with the collector
                found = derived(upstream)
                compared = [_compare(upstream, found, package) for package in upstream.seen]
            results += [_probed(upstream, one) for one in compared] if probe else compared
        except Exception as error:  # a list of somebody else's may hold anything
            results.append(Broken(upstream.code, _line(error)).result)
    return results


def _forget() -> None:
    forget()
    modules_of.cache_clear()
    _distributions.cache_clear()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _compare(upstream: Upstream, found: list[Touch], package: str) -> Compared:
    seen = upstream.seen[package]
    version = version_of(package)
    if version is None:
        return Compared(upstream.code, package, None, seen, 0, ())

    SpecifierSet(seen)  # raises here where a list has a wrong one
    touches = _touches(upstream, found, package)
    moved: dict[str, Moved] = {}
    for touch in touches:
        place = find(touch.name)
        if place is not None and place.module.problem:  # said once, of the file
            moved.setdefault(file := place.module.name, Moved(file, place.module.problem, touch.loss, touch.used))
        elif how := how_moved(touch):
            moved[touch.name] = Moved(touch.name, how, touch.loss, touch.used)
    return Compared(upstream.code, package, version, seen, len(touches), tuple(moved.values()))


def _touches(upstream: Upstream, found: list[Touch], package: str) -> list[Touch]:
    """What is looked for in a package: of the list, and of what our sources show."""
    listed = [touch for touch in upstream.touches if touch.name.partition(".")[0] == package]
    names = {touch.name for touch in listed}
    found = [touch for touch in found if touch.name.partition(".")[0] == package]
    return [
        *listed,
        *(touch for touch in found if touch.parameters is not None or touch.name not in names),
    ]


def looked_for(upstreams: Iterable[Upstream | Broken]) -> Iterator[tuple[str, Touch]]:
    """(package of ours, what it touches): every name that `compare` looks for in what is installed."""
    _forget()
    for upstream in upstreams:
        if isinstance(upstream, Broken):
            yield upstream.plugin, Touch("sqft_upstream", f"fails: {upstream.why}")
            continue
        with uncollected():
            found = derived(upstream)
        for package in upstream.seen:
            if version_of(package) is not None:
                yield from ((upstream.code, touch) for touch in _touches(upstream, found, package))


def _probed(upstream: Upstream, result: Compared) -> Compared:
    """The result with what the probes of its package say."""
    if result.version is None:
        return result
    probes = [one for one in upstream.probes if one.needs[0] == result.package and all(map(version_of, one.needs))]
    failed = [Moved(one.name, how, one.loss, one.run, one.copes) for one in probes if (how := how_failed(one))]
    faults = tuple(one for one in failed if not one.copes)
    known = tuple(one for one in failed if one.copes)
    return replace(result, names=result.names + len(probes), moved=result.moved + faults, known=known)


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def version_of(package: str) -> str | None:
    """The version of what is imported as `package`, None where it is not there; Python's for a module of its library,
    "0" where metadata are missing."""
    if package in sys.stdlib_module_names:
        return platform.python_version()
    if load(package) is None:
        return None
    for distribution in (package, *_distributions().get(package, ())):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "0"


def how_moved(touch: Touch) -> str | None:
    """What is different from what a touch expects, None where nothing is."""
    found = find(touch.name)
    if found is None:
        return f"gone{_nearest(touch.name)}"
    if touch.parameters is not None and not found.module.is_compiled:
        takes, wanted = parameters(found.node), [word.strip() for word in touch.parameters.split(",") if word]
        if takes is None:
            return f"its parameters {touch.parameters} cannot be seen any more"
        if not _fits(wanted, takes):
            return f"parameters {touch.parameters} → {', '.join(takes)}"
    missing = [word for word in touch.says if word not in found.text]
    return f"its source does not say {', '.join(missing)}" if missing else None


def _fits(wanted: list[str], takes: list[str]) -> bool:
    """Whether a function takes the parameters that are wanted: those with `=` may be missing, `...` is any more."""
    for place, word in enumerate(wanted):
        if word == "...":
            return True
        if place == len(takes):
            return all(one.endswith("=") or one == "..." for one in wanted[place:])
        if word.removesuffix("=") != takes[place]:
            return False
    return len(takes) == len(wanted)


def _nearest(name: str) -> str:
    """Which part of a dotted name is missing, where it is not the last."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        if find(".".join(parts[:count])) is None:
            return f": there is no {'.'.join(parts[:count])}"
    return ""


def how_failed(probe: Probe) -> str | None:
    """Why a probe does not hold, None where it does."""
    module, _, function = probe.run.partition(":")
    try:
        found: str | None = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever another project does now
        return _line(error)
    return found
