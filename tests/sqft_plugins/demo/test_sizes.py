"""What the demo has time for on a machine, and that a demo which goes on keeps it."""

from __future__ import annotations

import pytest

from sqft_plugins.demo import run, sizes
from sqft_plugins.demo.settings import SIZES, DemoSettings
from sqft_plugins.demo.sizes import FAST, choose_size, with_size


@pytest.mark.parametrize(("speed", "size"), [(FAST / 3, "small"), (FAST, "large"), (50 * FAST, "large")])
def test_a_slow_machine_takes_the_small_sizes(speed, size, monkeypatch) -> None:
    monkeypatch.setattr(sizes, "matmul_speed", lambda: speed)
    assert choose_size() == size


def test_what_the_user_asked_for_is_not_chosen(capsys) -> None:
    found = with_size(DemoSettings.make({"steps": 7}), "small")
    assert found == SIZES["small"]._replace(steps=7)
    said = capsys.readouterr().err
    assert f"--questions {found.questions} --text-tokens {found.text_tokens}:" in said
    assert "--steps" not in said

    assert with_size(DemoSettings.make({"steps": 1, "questions": 2, "text_tokens": 256}), "large") == (1, 2, 256)
    assert capsys.readouterr().err == ""


@pytest.mark.once
def test_a_demo_that_goes_on_keeps_its_size(tiny_llama, tmp_path, monkeypatch) -> None:
    asked = DemoSettings.make({"model": str(tiny_llama), "steps": 2, "text_tokens": 256, "rank_choices": [8, 4]})
    monkeypatch.setattr(run, "choose_size", lambda: "small")
    first = run.run_demo(tmp_path / "out", asked)
    assert first["settings"]["questions"] == SIZES["small"].questions

    monkeypatch.setattr(run, "choose_size", lambda: "large")
    again = run.run_demo(tmp_path / "out", asked)
    assert again["settings"] == first["settings"]
    assert again["stages"] == first["stages"]
