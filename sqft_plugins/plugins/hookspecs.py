"""All hooks of sqft. A plug-in implements any of them with `@sqft_plugins.hookimpl` and registers its module under the
entry-point group `sqft`. Every hook but `sqft_commands` returns objects that the core then calls; what they must offer
stands in `sqft_plugins.plugins.protocols`."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import click

    from sqft_plugins.grid import GridKind
    from sqft_plugins.plugins.protocols import (
        Check,
        Engine,
        Exporter,
        Inspector,
        Maker,
        ModelReader,
        Pruner,
        Quantizer,
        Searcher,
        SearchMethod,
        Task,
        Tuner,
        Upstream,
    )

hookspec = pluggy.HookspecMarker("sqft")
hookimpl = pluggy.HookimplMarker("sqft")


@hookspec
def sqft_pruners() -> Iterable[Pruner]:
    """Pruning methods for `sqft prune --method NAME`."""


@hookspec
def sqft_quantizers() -> Iterable[Quantizer]:
    """Quantization methods for `sqft quantize --method NAME`."""


@hookspec
def sqft_grids() -> Iterable[GridKind]:
    """Kinds of grids that adapters can be trained through, such as those of a file format that the plug-in opens;
    `python -m sqft_plugins.grid` lists and proves them."""


@hookspec
def sqft_makers() -> Iterable[Maker]:
    """Formats with quantizers of their own, for `sqft quantize --grid NAME`."""


@hookspec
def sqft_tuners() -> Iterable[Tuner]:
    """Adapter types for `sqft train | extract | merge`."""


@hookspec
def sqft_searchers() -> Mapping[str, Searcher]:
    """Sub-adapter choices for `--rank NAME`: name → function from adapted modules and search space to ranks."""


@hookspec
def sqft_search_methods() -> Iterable[SearchMethod]:
    """Methods for `sqft search --method NAME`, which evaluate configurations and propose the next."""


@hookspec
def sqft_exporters() -> Iterable[Exporter]:
    """Formats for `sqft export NAME`."""


@hookspec
def sqft_tasks() -> Iterable[Task]:
    """Evaluation tasks for `sqft eval --task NAME`."""


@hookspec
def sqft_engines() -> Iterable[Engine]:
    """Runtimes that evaluate a path, such as llama.cpp for `*.gguf`; the first that says it opens the path is used."""


@hookspec
def sqft_inspectors() -> Iterable[Inspector]:
    """Readers for `sqft inspect PATH` of paths that are no model or adapter folder; the first that says it opens the
    path is used."""


@hookspec
def sqft_models() -> Iterable[ModelReader]:
    """Models that are no folder, such as a `.gguf` file, for whatever trains, merges or loads one; the first that says
    it opens the path is used."""


@hookspec
def sqft_gguf_architectures() -> Iterable[Any]:
    """Model architectures for `sqft export gguf`: `gguf_ext.arch.Architecture` tables, for classes that it lacks."""


@hookspec
def sqft_commands(group: click.Group) -> None:
    """Add commands to the `sqft` command line: `group.add_command(command)`, or `add_command(command, section="run")`
    for a section of `sqft --help` ("make", "look", "run"; "more" where none is given)."""


@hookspec
def sqft_checks(deep: bool) -> Iterable[Check]:
    """Rows for `sqft doctor`: what this plug-in needs and whether it is there. An implementation may leave out `deep`;
    with it, it may import heavy packages to see whether they work."""


@hookspec
def sqft_upstream() -> Iterable[Upstream]:
    """What `python -m sqft_plugins.canary` looks for in other projects: the names that this plug-in touches beyond what
    they document. Imports nothing of theirs."""
