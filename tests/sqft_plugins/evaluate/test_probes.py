"""The probe must hold, and must fail where the cache has another name or is passed by."""

import pytest

from sqft_plugins.evaluate import probes


def test_the_cache_is_named_as_we_know():
    assert probes.cache_is_named() is None


@pytest.mark.parametrize(
    ("found", "why"),
    [({}, "it has logits, "), ({"use_cache": True}, "the model computes otherwise with its use_cache")],
)
def test_a_cache_of_another_name_is_said(monkeypatch, found, why):
    monkeypatch.setattr(probes, "cache_in", lambda output: found)
    assert probes.cache_is_named().startswith(why)
