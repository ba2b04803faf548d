"""The hooks, the verbs, and what importing does not import."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest
from packaging.specifiers import SpecifierSet

import gguf_ext.plugin
from gguf_ext import export_gguf
from gguf_ext.checks import checks
from gguf_ext.errors import INSTALL
from sqft_plugins.cli import main
from sqft_plugins.errors import DependencyError


@pytest.mark.once
def test_importing_imports_no_other_surface():
    code = (
        "import sys, gguf_ext, gguf_ext.plugin, gguf_ext.export, gguf_ext.verify.tensors\n"
        "import gguf_ext.run.session, gguf_ext.cli.export\n"
        "wrong = {'gguf', 'llama_cpp', 'peft', 'vllm'} & set(sys.modules)\n"
        "assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_hooks():
    names = [(exporter.name, exporter.command.name) for exporter in gguf_ext.plugin.sqft_exporters()]
    assert names == [(name, name) for name in ("gguf", "gguf-lora", "patch")]
    (engine,) = gguf_ext.plugin.sqft_engines()
    assert engine.name == "llama.cpp"


def test_missing_packages_are_named(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DependencyError, match=r"pip install 'sqft-plugins\[gguf\]'"):
        export_gguf(llama, tmp_path / "m.gguf")
    monkeypatch.setattr("gguf_ext.run.backend._backend", {})
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(DependencyError, match="llama-cpp-python"):
        gguf_ext.LlamaSession(tmp_path / "m.gguf")


def test_checks(monkeypatch):
    rows = {row.name: row for row in checks()}
    assert rows["gguf"].status == rows["llama-cpp-python"].status == "ok"
    assert rows["llama.cpp build"].status == "ok", rows["llama.cpp build"]
    found = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{found(package)}+cu124")  # as some wheels say
    assert {row.name: row.status for row in checks()} == {row.name: row.status for row in rows.values()}
    monkeypatch.setattr("sqft_plugins.plugins.packages.declared_range", lambda name: SpecifierSet(">=9,<10"))
    (row,) = [row for row in checks() if row.name == "gguf"]
    assert (row.status, row.remedy) == ("wrong", INSTALL)


def test_verify_from_the_command_line(llama, llama_int4, tmp_path, capsys):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    capsys.readouterr()
    assert _run("verify", str(llama_int4), str(tmp_path / "m.gguf")) == 0
    assert "pruned weights are 0\ntokenizer equal\nequal" in capsys.readouterr().out
    assert _run("verify", str(llama), str(tmp_path / "m.gguf"), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["differences"]
    assert _run("verify", str(llama), str(tmp_path / "none.gguf")) == 2
    assert "is not a file" in capsys.readouterr().err


def test_export_command(llama_int4, tmp_path):
    from click.testing import CliRunner

    from gguf_ext.cli.export import export_command

    done = CliRunner().invoke(export_command, [str(llama_int4), "--out", str(tmp_path / "m.gguf"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["types"]["Q4_0"] == 14
    assert report["bytes"] == (tmp_path / "m.gguf").stat().st_size
    shown = CliRunner().invoke(
        export_command, [str(llama_int4), "--out", str(tmp_path / "n.gguf"), "--float-type", "f32"]
    )
    assert "pruned weights all 0" in shown.stdout
    assert CliRunner().invoke(export_command, ["--help"]).output.count("sqft export gguf") == 6


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)
