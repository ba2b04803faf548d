from __future__ import annotations

import pytest

from sqft_plugins.errors import SQFTError
from sqft_plugins.names import matches, resolve, select

NAMES = [f"model.layers.{i}.{part}" for i in (0, 1, 10) for part in ("self_attn.q_proj", "mlp.up_proj")]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("model.layers.1.mlp.up_proj", NAMES[3:4]),
        ("up_proj", NAMES[1::2]),
        ("mlp.up_proj", NAMES[1::2]),
        ("0.mlp.up_proj", NAMES[1:2]),  # a dotted end: block 10 is another one
        (r".*\.mlp\..*", NAMES[1::2]),
        (r"model\.layers\.1\..*", NAMES[2:4]),
        (".*", NAMES),
        ("proj", []),  # the end of a part is no dotted end
        ("model.layers.1", []),  # nor is a beginning
        (r"layers\.1\..*", []),  # an expression is over the whole name
    ],
)
def test_a_pattern_is_a_name_its_dotted_end_or_an_expression_over_all_of_it(pattern, matched):
    assert [name for name in NAMES if matches(pattern, name)] == matched


def test_select_keeps_the_order_of_the_names_and_names_each_once():
    assert select([".*10.*", "mlp.up_proj", NAMES[5]], NAMES, "--exclude") == [NAMES[1], NAMES[3], *NAMES[4:]]
    assert select([], NAMES, "--exclude") == []


def test_later_overrides_win_and_the_rest_keeps_the_default():
    assert resolve({".*layers.1.*": 1, "q_proj": 2, NAMES[0]: 3}, NAMES, 0, "--sparsity-of") == dict(
        zip(NAMES, [3, 0, 2, 1, 2, 1], strict=True)
    )
    assert list(resolve({"up_proj": None}, NAMES, 7, "overrides")) == NAMES


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("q_porj", r"--exclude 'q_porj' matches no layer: did you mean 'q_proj'\?"),
        ("attn.q_proj", r"--exclude 'attn.q_proj' matches no layer: did you mean 'self_attn.q_proj'"),
        ("xyz", r"--exclude 'xyz' matches no layer: correct it, one is called 'model\.layers\.0\.self_attn\.q_proj'"),
        ("*.q_proj", r"--exclude '\*\.q_proj' is no valid regular expression \(nothing to repeat .*: give a name"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern, message):
    with pytest.raises(SQFTError, match=message):
        select(["q_proj", pattern], NAMES, "--exclude")
    with pytest.raises(SQFTError, match=message):
        resolve({"q_proj": 1, pattern: 2}, NAMES, 0, "--exclude")


def test_a_pattern_for_no_names_at_all_is_refused():
    with pytest.raises(SQFTError, match="key 'q_proj' matches no adapted module: there is none, remove it"):
        select(["q_proj"], [], "key", "adapted module")
