"""Scores of a loaded model."""

from __future__ import annotations

import pytest

from sqft_plugins.evaluate import open_session, perplexity_of

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_perplexity_has_the_error_of_its_windows(tiny_llama) -> None:
    session = open_session(tiny_llama, dtype="float32")
    text = " ".join(f"stone {number} water" for number in range(400))
    found = perplexity_of(session, text, 3 * 256)
    single = perplexity_of(session, text, 200)
    assert 0 < found.stderr < found.value
    assert found.tokens == 3 * 256  # each window's first token is predicted from <bos>
    assert single.stderr != single.stderr  # one window has no error
