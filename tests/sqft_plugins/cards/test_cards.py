"""What every card needs: the name of a base on the hub, and templates that lack nothing."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from sqft_plugins.cards import hub_id, render


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("gpt2", "gpt2"),
        ("/home/me/models/gemma", None),
        ("./gemma", None),
        ("models/gemma/50", None),
        ("a b", None),
        ("", None),
        (None, None),
        ("/cache/models--google--gemma-3-270m/snapshots/0123/", "google/gemma-3-270m"),
    ],
)
def test_what_the_hub_takes_for_a_base(name, expected) -> None:
    assert hub_id(name) == expected


def test_a_folder_that_is_here_is_no_name_on_the_hub(tmp_path, monkeypatch) -> None:
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/gemma") is None


def test_a_value_that_the_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("model.md.jinja", title="model")
