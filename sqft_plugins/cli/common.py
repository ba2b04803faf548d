"""Output that every verb shares, and `--json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def examples(*lines: str) -> str:
    """The epilog of a command: its examples, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def emit(as_json: bool, result: Mapping[str, Any], text: str | Callable[[], object] = "") -> None:
    """Prints the result as JSON, or the text, which may be what prints it."""
    if as_json:
        click.echo(json.dumps(result, indent=2, default=str))
    elif isinstance(text, str):
        click.echo(text)
    else:
        text()


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout, numbers to the right. Not cut to the width of the terminal when it is no terminal."""
    from rich import console as rich  # late: help pages have no table
    from rich.table import Table

    class Console(rich.Console):
        def on_broken_pipe(self) -> None:  # rich's own ends with code 1, which some verbs have for what they found
            raise BrokenPipeError

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
