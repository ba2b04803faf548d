"""sqft demo: the whole way on a real model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import click
from pydantic import model_validator

from sqft_plugins.cli.common import emit, examples, json_option, table
from sqft_plugins.cli.verb import Overwrite
from sqft_plugins.demo.settings import DemoSettings
from sqft_plugins.settings import option
from sqft_plugins.settings.click_options import options
from sqft_plugins.stages import Stages


class DemoOutput(Overwrite):
    out: str = option("demo-out", "Where everything goes.", "place", metavar="DIR")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        Stages(Path(self.out), self.overwrite)
        return self


@click.command(
    epilog=examples(
        "sqft demo",
        "sqft demo --compare-lora",
        "sqft demo --data my-task.jsonl --out my-demo",
        "sqft demo --sparsity 0.7 --steps 300 --questions 500 --out demo-70 --json",
    )
)
@options(settings=DemoSettings, output=DemoOutput)
@json_option
def command(settings: DemoSettings, output: DemoOutput, as_json: bool) -> None:
    """Run the whole way on a real model.

    It is pruned, tuned, merged, quantized and exported; every stage is scored, and the table is shown as it grows.

    A second run goes on where the first stopped and reuses what is unchanged.
    """
    from sqft_plugins.demo.report import COLUMNS, rows
    from sqft_plugins.demo.run import run_demo

    def show(report: Mapping[str, Any]) -> None:
        if not as_json:
            table(COLUMNS, rows(report), title=f"{output.out}/report.md, report.json, report.png")

    report = run_demo(output.out, settings, output.overwrite, show)
    emit(as_json, report, lambda: None)
