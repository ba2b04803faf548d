"""sqft report: a run as one page."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option
from sqft_plugins.settings.checked import THERE


@click.command(
    epilog=examples(
        "sqft report demo-out",
        "sqft report runs/math --out math.html --title 'Word problems, 50 %'",
        "sqft report models/gemma-50-int4 --out int4.html",
        "sqft report search/math --json | jq .searches[0].result.verdict",
    )
)
@click.argument("path", metavar="DIR", type=THERE)
@click.option("--out", type=click.Path(), metavar="FILE", help="Where to write. [default: DIR/report.html]")
@click.option("--title", help="The heading. [default: the name of DIR]")
@click.option("--quick", is_flag=True, help="Read no weights: no measured zeros, no map of them, no INT4 codes.")
@overwrite_option
@json_option
def command(path: str, out: str | None, title: str | None, quick: bool, overwrite: bool, as_json: bool) -> None:
    """Make one self-contained HTML page of DIR: tables, loss, search, sparsity, sizes.

    DIR is a folder of `sqft demo` or `sqft run`, a model, an adapter, a search, what `sqft eval --json` printed, or a
    folder that holds several of these, two levels deep. What is not recognised or damaged is named on the page.

    An earlier page of this command is replaced. The page needs no network and no script.
    """
    from sqft_plugins.report import write_report

    result = write_report(path, out, title=title, quick=quick, overwrite=overwrite)

    def show() -> None:
        click.echo(result["summary"])
        click.echo(f"{result['out']}: {result['bytes'] / 1e3:,.0f} kB, {len(result['artefacts'])} artefacts")
        for name, why in result["left_out"].items():
            click.echo(f"left out: {name}: {why}")

    emit(as_json, result, show)
