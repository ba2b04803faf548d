"""`sqft plugins`, and `sqft export` with the formats of plug-ins."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import click
import pytest
from helpers_plugins import module, offers

from sqft_plugins.cli import main
from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.manager import GROUP, build_manager


@pytest.fixture
def sqft(monkeypatch, capsys):
    """`sqft(host, *arguments)` → exit code, stdout, stderr."""

    def run(host, *arguments: str):
        monkeypatch.setattr("sqft_plugins.plugins.get_manager", lambda: host)
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return end.value.code, *capsys.readouterr()

    return run


def test_plugins_table(sqft, monkeypatch):
    absent = EntryPoint(name="absent", value="no_such_module_anywhere", group=GROUP)
    host = build_manager([absent, module(monkeypatch, "plug_well", sqft_pruners=offers("well"))])
    code, out, _ = sqft(host, "plugins")
    assert code == 0
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "sqft_quantizers" in rows["sqft_plugins"]
    assert "sqft_pruners" in rows["plug_well"]
    assert "broken: ModuleNotFoundError" in rows["absent"]
    assert "sqft doctor" in out


class Format:
    name = "paper"
    command = click.Command("paper", callback=lambda: click.echo("printed"))


@hookimpl
def sqft_exporters():
    return [Format()]


def test_export_runs_the_command_of_the_format(sqft, monkeypatch):
    host = build_manager([module(monkeypatch, "plug_paper", sqft_exporters=sqft_exporters)])
    assert sqft(host, "export", "paper") == (0, "printed\n", "")
    assert "paper" in sqft(host, "export", "--help")[1]
    assert sqft(host, "export") == (2, "", "sqft: export needs a format: known: paper\n")
    unknown = "sqft: export format 'papper' is unknown: did you mean 'paper'? known: paper\n"
    assert sqft(host, "export", "papper") == (2, "", unknown)


def test_export_without_formats_is_one_clear_line(sqft):
    host = build_manager([])
    code, _, error = sqft(host, "export", "gguf")
    assert code == 2
    assert error.startswith(
        "sqft: export format 'gguf' is unknown: known: none; no plug-in with formats is loaded: pip"
    )
    assert len(error.splitlines()) == 1
    host.broken["gguf_ext"] = "ImportError: x"
    assert "broken plug-ins: gguf_ext, see `sqft doctor`" in sqft(host, "export", "gguf")[2]
