"""sqft report: a run as one page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import THERE


class ReportSettings(Overwrite):
    out: str | None = option(None, "Where to write. [default: DIR/report.html]", "place", metavar="FILE")
    title: str | None = option(None, "The heading. [default: the name of DIR]")
    quick: bool = option(False, "Read no weights: no measured zeros, no map of them, no INT4 codes.")


@verb(
    "sqft report demo-out",
    "sqft report runs/math --out math.html --title 'Word problems, 50 %'",
    "sqft report models/gemma-50-int4 --out int4.html",
    "sqft report search/math --json | jq .searches[0].result.verdict",
    settings=ReportSettings,
)
@click.argument("path", metavar="DIR", type=THERE)
def command(path: str, settings: ReportSettings) -> Found:
    """Make one self-contained HTML page of DIR: tables, loss, search, sparsity, sizes.

    DIR is a folder of `sqft demo` or `sqft run`, a model, an adapter, a search, what `sqft eval --json` printed, or a
    folder that holds several of these, two levels deep. What is not recognised or damaged is named on the page.

    An earlier page of this command is replaced. The page needs no network and no script.
    """
    from sqft_plugins.report import write_report

    result = write_report(path, **settings.model_dump())
    return Found(result, _text(result))


def _text(result: Mapping[str, Any]) -> str:
    page = f"{result['out']}: {result['bytes'] / 1e3:,.0f} kB, {len(result['artefacts'])} artefacts"
    left_out = [f"left out: {name}: {why}" for name, why in result["left_out"].items()]
    return "\n".join([result["summary"], page, *left_out])
