"""Which files `sqft report` writes and replaces."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sqft_plugins.cli import cli
from sqft_plugins.errors import CheckpointError, OutputExistsError, SQFTError
from sqft_plugins.report import collect, write_report


def test_only_a_page_of_ours_is_replaced(models, tmp_path) -> None:
    target = tmp_path / "page.html"
    write_report(models / "int4", target, quick=True)
    write_report(models / "int4", target, quick=True)
    target.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_report(models / "int4", target, quick=True)
    assert target.read_text() == "mine"
    write_report(models / "int4", target, quick=True, overwrite=True)
    assert "sqft-plugins" in target.read_text()


def test_nothing_to_report_is_an_error_and_no_page(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        collect(tmp_path / "no")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(CheckpointError, match="holds nothing to report"):
        write_report(tmp_path)
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(SQFTError, match=r"cut.json is damaged or cut off: as a whole: Invalid JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_prints_the_summary_or_json(models, tmp_path) -> None:
    target = tmp_path / "page.html"
    shown = CliRunner().invoke(cli, ["report", str(models / "int4"), "--out", str(target), "--quick"])
    assert shown.exit_code == 0, shown.output
    assert f"{target}: " in shown.stdout
    as_json = CliRunner().invoke(cli, ["report", str(models / "int4"), "--out", str(target), "--quick", "--json"])
    assert json.loads(as_json.stdout)["artefacts"][0]["what"] == "magnitude → round-to-nearest"
