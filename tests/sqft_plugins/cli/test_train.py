"""`sqft train` on the command line."""

from __future__ import annotations

import json
from typing import Literal, get_args, get_origin

import pytest
from helpers_train import PLAIN

from sqft_plugins.cli import main
from sqft_plugins.tune import AdapterSettings, TrainSettings


def test_the_command_line_takes_chats_from_several_files(pruned, tmp_path, monkeypatch, capsys) -> None:
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Four."}]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 4))
    (tmp_path / "chat.jinja").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    command = f"train {pruned} --data a.jsonl --data b.jsonl --eval-data b.jsonl --chat-template chat.jinja --epochs 2"
    modules = ["--target-modules", "q_proj, v_proj, c_attn"]
    with pytest.raises(SystemExit) as done:
        main(
            [
                *command.split(),
                *modules,
                "--batch-size",
                "4",
                "--eval-every",
                "2",
                "--packing",
                "--out",
                "adapter",
                "--dtype",
                "float32",
            ]
        )
    assert not done.value.code
    output = capsys.readouterr()
    assert "8 examples in 4 steps of 4, base in float32, as asked" in output.err.replace("\n", " ")
    assert "no layer is called c_attn: the other target modules are adapted" in output.err.replace("\n", " ")
    assert "held out: " in output.out
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert (report["examples"], report["held_out"], len(report["losses"])) == (8, 4, 4)
    assert report["trained_parameters"] == 2 * 32 * (64 + 64 + 64 + 32)  # A and B of q and v in each of two blocks
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == PLAIN


def test_every_setting_has_an_option_with_its_choices() -> None:
    from sqft_plugins.cli.train import command

    options = {parameter.name: parameter for parameter in command.params}
    names = set(options)
    assert set(TrainSettings.model_fields) <= names
    assert set(AdapterSettings.model_fields) <= names
    assert options["sparse"].opts == ["--dense"]
    for name, field in TrainSettings.model_fields.items():
        if get_origin(field.annotation) is Literal:
            assert tuple(options[name].type.choices) == get_args(field.annotation)
