"""What an adapter folder offers: its kind, its ranks, its signature."""

from __future__ import annotations

import shutil

import pytest
from helpers_adapters import DOWN, MODULES, Q0, Q1, write_adapter, write_configuration

from sqft_plugins.errors import CheckpointError
from vllm_ext.adapters.folder import UnknownRankError, open_adapter, signature


def test_every_offered_variant_has_its_ranks(root):
    write_configuration(root / "math", "searched", {".*": 8, "q_proj": 4})
    folder = open_adapter(root / "math")
    assert folder.variants == [None, "max", "heuristic", "min", "r8", "r6", "r4", "searched"]
    expected = {None: 6, "max": 8, "heuristic": 6, "median": 6, "min": 4, "r8": 8, "r6": 6, "r4": 4}
    for rank, number in expected.items():
        assert folder.ranks(rank) == dict.fromkeys(MODULES, number)
    assert folder.ranks("searched") == {Q0: 4, DOWN: 8, Q1: 4}
    assert folder.max_rank("searched") == 8


def test_a_saved_default_is_what_the_plain_name_means(root):
    write_configuration(root / "math", "default", {".*": 4})
    assert set(open_adapter(root / "math").ranks(None).values()) == {4}


@pytest.mark.parametrize(
    "rank", ["r5", "r0", "r64", "8", "@r8", "r08", "r008", "best", "R8", "maximum", "r8 ", "r" + "9" * 60]
)
def test_a_rank_that_is_not_offered_names_those_that_are(root, rank):
    with pytest.raises(UnknownRankError, match=r"adapter math is not served at .* use max, heuristic, min, r8, r6, r4"):
        open_adapter(root / "math").ranks(rank)


def test_an_adapter_with_a_fixed_rank_has_its_plain_name_only(root):
    folder = open_adapter(root / "plain")
    assert folder.variants == [None]
    assert folder.ranks(None) == dict.fromkeys(MODULES, 4)
    with pytest.raises(UnknownRankError, match="fixed rank: ask for plain"):
        folder.ranks("max")


def test_kinds_are_told_apart(root):
    write_adapter(root / "masked", sparse=True)
    write_adapter(root / "qa", sparse=True, quantization_aware=True)
    kinds = {name: open_adapter(root / name).kind for name in ("math", "plain", "masked", "qa")}
    assert kinds == {"math": "dense", "plain": "dense", "masked": "masked", "qa": "quantization-aware"}


def test_configurations_that_do_not_fit_are_errors_of_that_name_only(root):
    write_configuration(root / "math", "unknown", {"k_proj": 4})
    write_configuration(root / "math", "outside", {".*": 5})
    write_configuration(root / "math", "partial", {"q_proj": 4})
    write_configuration(root / "math", "max", {".*": 4})  # a rank's name is no configuration's
    file = write_configuration(root / "math", "broken", {})
    file.write_text('{"q_proj": ')
    folder = open_adapter(root / "math")
    assert "max" in folder.variants
    assert set(folder.ranks("max").values()) == {8}
    for name in ("unknown", "outside", "partial", "broken"):
        with pytest.raises(CheckpointError, match=name):
            folder.ranks(name)


def test_the_signature_changes_with_every_file_and_is_none_when_the_folder_is_gone(root):
    seen = {signature(root / "math")}
    write_configuration(root / "math", "searched", {".*": 4})
    seen.add(signature(root / "math"))
    write_adapter(root / "math", seed=1)
    seen.add(signature(root / "math"))
    assert len(seen) == 3
    shutil.rmtree(root / "math")
    assert signature(root / "math") is None
