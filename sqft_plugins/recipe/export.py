"""Formats of plug-ins: their command is asked what it takes, and then called, so that a recipe can all that it can."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.settings.checked import PLANNED, CheckedPath

OWN = ("out", "overwrite", "json")
"""Options that the recipe sets itself."""


def command_of(name: str) -> click.Command:
    """The command of a format. Raises SQFTError for a format that no plug-in offers."""
    command: click.Command = get_manager().get("sqft_exporters", name, "format").command
    return command


def parameters(name: str) -> dict[str, click.Parameter]:
    """The options and arguments of a format, by the name that they have in a recipe: "--float-type" is float_type."""
    found = {parameter.opts[0].lstrip("-").replace("-", "_"): parameter for parameter in command_of(name).params}
    return {key: parameter for key, parameter in found.items() if key not in OWN}


def path_names(name: str) -> list[str]:
    """Those that are paths."""
    return [key for key, parameter in parameters(name).items() if isinstance(parameter.type, click.Path | CheckedPath)]


def arguments(name: str, values: Mapping[str, Any]) -> list[str]:
    """The command line: `values` by parameter name; None and False are left out, a list repeats its option."""
    options, positional = [], []
    for key, parameter in parameters(name).items():
        value = values.get(key)
        if value is None or value is False:
            continue
        if isinstance(parameter, click.Argument):
            positional.append(str(value))
        elif value is True:
            options.append(parameter.opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                options += [parameter.opts[0], str(one)]
    return [*options, *positional]


def has_own_place(name: str) -> bool:
    """Whether the format knows where its output belongs, such as value planes in their adapter's folder."""
    return not _out(name).required


def target(name: str, folder: Path) -> Path:
    """Where the output goes; its ending is that of the command's own --out."""
    return folder / f"model{Path(_out(name).make_metavar(click.Context(command_of(name)))).suffix}"


def files_of(result: Mapping[str, Any], target: Path) -> list[Path]:
    """The files that an export has left: `target`, or its parts, the first of which is the one to open. The result has
    the paths of the time of the export; a run folder may have been moved since."""
    return [target.with_name(Path(part).name) for part in result.get("parts") or [target]]


def check(name: str, values: Mapping[str, Any], target: Path) -> None:
    """Raises SQFTError for values that the command would not take. Nothing is run."""
    try:
        context = command_of(name).make_context(name, _line(name, values, target), obj=PLANNED)
    except click.ClickException as error:
        raise SQFTError(f"format {name}: {' '.join(error.format_message().split())}") from error
    exporter = get_manager().get("sqft_exporters", name, "format")
    if hasattr(exporter, "check_options"):
        options = [parameter.name for parameter in parameters(name).values() if isinstance(parameter, click.Option)]
        exporter.check_options(**{option: context.params[option] for option in options})


def check_adapter(name: str, adapter: Artefact) -> None:
    """What our own formats say of an adapter once it is there, said before the work."""
    if name == "gguf-lora" and (adapter.masked or len(adapter.choices) > 1):
        remedy = "merge it and export that" if adapter.masked else "put extract above, which chooses one"
        what = "masked" if adapter.masked else "elastic"
        raise SQFTError(f"{adapter.name} is {what}, a LoRA file has one dense rank: {remedy}")
    if name == "plane" and not adapter.quantization_aware:
        raise SQFTError(f"{adapter.name} is not quantization-aware, only such adapters have planes: leave it out")


def export(name: str, values: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Runs `sqft export NAME … --json` in this process → its result."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        command_of(name).main(_line(name, values, target), prog_name=f"sqft export {name}", standalone_mode=False)
    result: dict[str, Any] = json.loads(shown.getvalue())
    return result


def _line(name: str, values: Mapping[str, Any], target: Path) -> list[str]:
    place = [] if has_own_place(name) else ["--out", str(target)]
    return [*arguments(name, values), *place, "--overwrite", "--json"]


def _out(name: str) -> click.Parameter:
    return next(parameter for parameter in command_of(name).params if parameter.name == "out")
