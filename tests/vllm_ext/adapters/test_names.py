"""Names from the network."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.names import (
    MAX_LENGTH,
    MODALITIES,
    AdapterName,
    AdapterNameError,
    Variant,
    parse_name,
    parse_path,
    shown,
    why_not_served,
)

HOSTILE = [
    "", "@", "@max", "math@", "math@@max", "math@max@min", "..", ".", "../math", "math/../x", "/etc/passwd", "a/b",
    "a\\b", "%2e%2e%2fmath", "math%00", "math\0", "math\n", "\nmath", "math@r16\n", "math ", " math", "~root",
    "math@r16?sub=max", ".hidden", "math@.hidden", "-rf", "mäth", "math@r１６", "http://x/y", "file:math",
    "m" * 10_000, "math@" + "r" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_name_is_refused_in_one_short_line(name):
    with pytest.raises(AdapterNameError) as caught:
        parse_name(name)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "adapter", "rank"),
    [
        ("math", "math", None),
        ("math@max", "math", "max"),
        ("math@r16", "math", "r16"),
        ("Math-2.v_1@searched.2", "Math-2.v_1", "searched.2"),
        ("a" * MAX_LENGTH, "a" * MAX_LENGTH, None),
    ],
)
def test_a_name_and_its_rank_are_taken_apart_and_put_together(text, adapter, rank):
    name = parse_name(text)
    assert name == AdapterName(adapter, rank)
    assert str(name) == text


@given(st.text(max_size=40))
def test_whatever_is_accepted_stays_one_entry_of_a_folder(text):
    try:
        name = parse_name(text)
    except SQFTError:
        return
    for part in filter(None, (name.adapter, name.rank)):
        assert not set(part) & set("/\\%:?*~ \0\n\r\t")
        assert part not in (".", "..")
    assert str(name) == text.removesuffix("*1")


@pytest.mark.parametrize("name", [*HOSTILE, "math@r8", "math@max", "math*0.5", *sorted(MODALITIES)], ids=str.__len__)
def test_a_folder_that_cannot_be_asked_for_or_means_something_else_is_not_served(name):
    assert "rename it" in why_not_served(name)


@pytest.mark.parametrize("served", ["gemma", "gemma@chat"])
def test_a_folder_called_as_the_base_is_not_served(served):
    assert "served under this name" in why_not_served("gemma", ["other", served])
    assert why_not_served("gemma", ["other", "gemma-50", "Gemma"]) is None


@pytest.mark.parametrize(
    "name",
    ["math", "Math", "r16", "r016", "max", "min", "heuristic", "default", "base", "texts", "image_url", "v1.2-b"],
)
def test_a_name_that_means_nothing_else_is_served(name):
    assert why_not_served(name, ["gemma-50"]) is None


def test_the_modalities_are_those_of_vllm():
    chat = pytest.importorskip("vllm.renderers.chat_utils", reason="vLLM is not installed")
    parsers = getattr(chat, "MM_PARSER_MAP", None) or chat.chat_message.MM_PARSER_MAP  # 0.32, 0.33
    assert {kind.split("_")[0] for kind in parsers} == MODALITIES


def test_a_shown_name_is_short_and_printable():
    assert len(shown("\x1b" * 10_000)) < 300
    assert shown("math") == "'math'"


@pytest.mark.parametrize("text", ["math*0.5", "math@r16*0", "math@min*-10", "Math-2.v_1@searched.2*1.0625"])
def test_a_strength_is_taken_apart_and_put_together(text):
    name = parse_name(text)
    assert f"{name.adapter}{f'@{name.rank}' if name.rank else ''}*{name.strength:g}" == text == str(name)
    assert parse_name("math*1") == parse_name("math")


@pytest.mark.parametrize(
    "strength", ["", "x", "1e1", "+1", "0x1", "nan", "inf", "10.1", "-11", "1*1", "1@r8", "１", " 1"]
)
def test_a_strength_that_is_no_number_within_bounds_is_refused(strength):
    with pytest.raises(AdapterNameError, match="is no number from -10 to 10: write such as"):
        parse_name(f"math*{strength}")


@pytest.mark.parametrize(
    ("text", "written"), [(".5", "0.5"), ("0.50", "0.5"), ("1.0", "1"), ("-0", "0"), ("0.00001", "0")]
)
def test_a_strength_has_one_name(text, written):
    with pytest.raises(AdapterNameError, match=f"is written {written},"):
        parse_name(f"math*{text}")


def test_a_variant_travels_as_a_path(tmp_path):
    for rank, version, strength in itertools.product((None, "r16", "searched.2"), ("", "1a2b"), (1.0, 0.0, -0.25)):
        variant = Variant(tmp_path / "math", rank, version, strength)
        assert parse_path(str(variant)) == variant
    assert parse_path(str(tmp_path / "math")) is None
    for rank in ("../../x", "r8*11", "*", "r8*1*1", "@r8"):
        with pytest.raises(AdapterNameError):
            parse_path(f"{tmp_path}?sub={rank}")
