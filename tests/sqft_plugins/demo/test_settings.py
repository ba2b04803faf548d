"""The command line of a demo, as its report shows it, has the settings of the demo."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sqft_plugins.cli.demo import command
from sqft_plugins.demo import run as demo
from sqft_plugins.demo.settings import DemoSettings, command_line

CHANGED = {"model": "a model", "data": "rows.jsonl", "sparsity": 0.7, "steps": 7, "learning_rate": 1e-3}
CHANGED |= {"text_fraction": 0.5, "questions": 3, "text_tokens": 512, "seed": 1, "compare_lora": True}


@pytest.mark.parametrize("changes", [{}, {"steps": 7}, CHANGED])
def test_the_command_line_gives_the_same_settings(changes, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a model").mkdir()
    Path("a model/config.json").touch()
    Path("rows.jsonl").touch()
    asked = DemoSettings.make(changes)
    words = shlex.split(str(command_line(asked.model_dump(), Path("a folder"))))
    assert words[:4] == ["sqft", "demo", "--out", "a folder"]
    assert len(words) == 4 + 2 * len(changes) - ("compare_lora" in changes)  # a flag has no value

    given = []
    monkeypatch.setattr(
        demo, "run_demo", lambda out, settings, overwrite, show: given.append((out, settings)) or {"stages": []}
    )
    command.main([*words[2:], "--json"], standalone_mode=False)
    assert given == [("a folder", asked)]


@pytest.mark.parametrize("changes", [{"rank_choices": [8, 4]}, {"alpha": 32}, {"batch_size": 4}])
def test_what_has_no_option_has_no_command_line(changes) -> None:
    assert command_line(DemoSettings.make(changes).model_dump(), Path("out")) is None
