"""A verb of the command line: its examples, its options, and what it prints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import click
from pydantic import model_validator

from sqft_plugins.checkpoint.files import check_output_folder
from sqft_plugins.cli.common import emit, examples, json_option
from sqft_plugins.elastic import Rank
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.click_options import options


class Overwrite(Settings):
    overwrite: bool = option(False, "Replace the output if it exists.")


class Output(Overwrite):
    """The folder that a verb writes. Raises SQFTError, before anything is imported, for one that it cannot write."""

    out: str = option(..., "Where to write. Must not exist.", "place", metavar="DIR")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        check_output_folder(self.out, self.overwrite)
        return self


class AtRank(Output):
    rank: Rank = option(
        "heuristic",
        "heuristic (the median; in PEFT an adapter starts at max), max, min, a number, a configuration that the "
        "adapter carries, or a JSON file: module name → rank.",
        "rank",
        metavar="RANK",
    )


@dataclass(frozen=True)
class Found:
    """What a verb found.

    result: for `--json`.
    text: for a person; or what prints it.
    code: the exit code.
    """

    result: Mapping[str, Any]
    text: str | Callable[[], object]
    code: int = 0


def verb(
    *lines: str, name: str | None = None, **kinds: type[Settings]
) -> Callable[[Callable[..., Found | None]], click.Command]:
    """A decorator that makes a command, with `--json`, of a function that returns what it found, None to say nothing.

    lines: the examples at the end of its help.
    name: of a command of a plug-in; ours are called as their file.
    kinds: argument of the function → the settings whose options the command has.
    """

    def decorate(function: Callable[..., Found | None]) -> click.Command:
        @options(**kinds)
        @json_option
        @functools.wraps(function)
        def called(*arguments: Any, as_json: bool, **values: Any) -> None:
            found = function(*arguments, **values)
            if found is not None:
                emit(as_json, found.result, found.text)
                click.get_current_context().exit(found.code)

        command = click.command(name, epilog=examples(*lines))(called)
        command.params.sort(key=lambda parameter: isinstance(parameter, click.Option))  # arguments first
        return command

    return decorate
