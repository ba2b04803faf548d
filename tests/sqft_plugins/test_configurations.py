"""Saved rank configurations."""

from __future__ import annotations

import json

import pytest

from sqft_plugins.configurations import (
    check_configuration_name,
    read_configuration,
    saved_configuration,
    saved_configurations,
)
from sqft_plugins.errors import CheckpointError, SQFTError


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "configurations").mkdir()
    for name in ("searched", "small.2", "max", "r8", "12", ".hidden", "a b"):
        (tmp_path / "configurations" / f"{name}.json").write_text(json.dumps({".*": 16, "q_proj": 32}))
    (tmp_path / "configurations" / "notes.txt").write_text("not one")
    return tmp_path


def test_configurations_are_listed_by_name_and_those_called_like_a_rank_are_left_out(adapter, tmp_path):
    assert list(saved_configurations(adapter)) == ["searched", "small.2"]
    assert saved_configurations(tmp_path / "none") == {}


def test_a_configuration_is_read_by_name_and_keeps_its_order(adapter):
    assert list(saved_configuration(adapter, "searched").items()) == [(".*", 16), ("q_proj", 32)]
    with pytest.raises(SQFTError, match="did you mean 'searched'"):
        saved_configuration(adapter, "serched")


@pytest.mark.parametrize("name", ["searched", "small.2", "A-1_b"])
def test_usable_names_pass(name):
    assert check_configuration_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "max", "heuristic", "r16", "16", ".x", "x" * 65, "x\n", "a b"]
)
def test_names_that_no_request_could_ask_for_are_refused(name):
    with pytest.raises(SQFTError, match="configuration name"):
        check_configuration_name(name)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "3", '{"q_proj": "16"}', '{"q_proj": true}', '{"q_proj": 1.5}', "[" * 100_000, "\udcff"],
)
def test_what_is_no_configuration_is_one_line_with_the_file(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"x\.json") as caught:
        read_configuration(file)
    assert "\n" not in str(caught.value)
