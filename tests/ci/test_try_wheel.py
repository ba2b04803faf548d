""".ci/try_wheel.py: that it forgets no extra, and tells what fails. What it installs is seen when a release runs it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import try_wheel

ROOT = Path(__file__).parents[2]
FOR_A_CLONE = {"dev", "docs", "all"}


def test_every_extra_of_a_user_has_its_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(try_wheel.IMPORTS) - {"none"} == set(project["optional-dependencies"]) - FOR_A_CLONE


def test_a_release_tries_every_extra_but_vllm(release):
    runs = [step.get("run", "") for step in release["jobs"]["try"]["steps"]]
    (tried,) = [run for run in runs if "try_wheel.py dist/*manylinux" in run]
    extras = re.findall(r"--extra (\w+)", tried)
    assert sorted(extras) == sorted(set(try_wheel.IMPORTS) - {"vllm"})


def test_the_example_is_the_readmes():
    code = try_wheel.readme_example()
    compile(code, "README.md", "exec")
    assert "SQFTConfig(" in code
    assert "of the weights are 0" in code


def test_the_script_says_what_failed_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(try_wheel.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(try_wheel.sys, "argv", ["try_wheel.py", "no.whl", "--installer", "uv", "--", "--offline"])
    monkeypatch.setattr(try_wheel.Environment, "install", lambda self, *words: self.run(self.python, "-c", "1 / 0"))
    assert try_wheel.main() == 1
    shown = capsys.readouterr().out
    assert "ZeroDivisionError" in shown
    assert "try_wheel: FAILED: no.whl[none], uv" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["--", "torch==2.13.0", "--no-deps"]])
def test_words_behind_the_dashes_go_to_the_installer(monkeypatch, tmp_path, words):
    seen = []
    monkeypatch.setattr(try_wheel.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(try_wheel, "try_extra", lambda environment, file, extra, passed, compiler: seen.append(passed))
    monkeypatch.setattr(try_wheel, "Environment", lambda *arguments: None)
    monkeypatch.setattr(try_wheel.sys, "argv", ["try_wheel.py", "no.whl", "--extra", "peft", *words])
    assert try_wheel.main() == 0
    assert seen == [words[1:]]
