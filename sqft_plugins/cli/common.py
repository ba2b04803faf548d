"""Options and output that every verb shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from sqft_plugins.configurations import read_configuration
from sqft_plugins.errors import SQFTError

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
out_option = click.option(
    "--out", required=True, type=click.Path(), metavar="DIR", help="Where to write. Must not exist."
)


def examples(*lines: str) -> str:
    """The epilog of a command: its examples, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def emit(as_json: bool, result: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
    """Prints the result: JSON, or `show`, or its top-level values as `name  value` lines."""
    if as_json:
        click.echo(json.dumps(result, indent=2, default=str))
    elif show is not None:
        show()
    else:
        for key, value in result.items():
            click.echo(f"{key:16} {value}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout, numbers to the right. Not cut to the width of the terminal when it is no terminal."""
    from rich.console import Console  # late: help pages have no table
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(shown)


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


class RankType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A rank: a number, a name, or a JSON file with module name (or pattern) → rank."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or not value.endswith(".json"):
            return value
        try:
            return read_configuration(value)
        except SQFTError as error:
            self.fail(str(error))


rank_option = click.option(
    "--rank",
    type=RankType(),
    default="heuristic",
    show_default=True,
    metavar="RANK",
    help="heuristic (the median; in PEFT an adapter starts at max), max, min, a number, a configuration that the "
    "adapter carries, or a JSON file: module name → rank.",
)
