"""Merges as scores: cut alike, or refused."""

from __future__ import annotations

import pytest
from helpers_tokenizers import all_texts, differing, enlarged

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.tokenizer.merges import merge_scores

# --- what was refused without need ---


def mixed_runs(make, lengths):
    """Llama's and Mistral's: runs of spaces have one score, so their merges stand by the length of the left part."""
    there = {1, *lengths}
    runs = [(left, right) for left in there for right in there if left + right in there]
    runs.sort(reverse=True)
    merges = [("▁" * left, "▁" * right) for left, right in runs]
    return enlarged(make["fallback"](prefix=True), ["▁" * length for length in lengths], merges)


@pytest.mark.parametrize("lengths", [range(2, 17), (2, 4, 8, 16, 3), (2, 3, 5)])
def test_runs_of_spaces_of_one_score_are_cut_alike(lengths, make, folder_of, tmp_path, texts):
    model = folder_of(mixed_runs(make, lengths))
    report = export_gguf(model, tmp_path / "m.gguf")
    runs = [f"{begin}{' ' * count}{end}" for count in range(70) for begin in ("", "a") for end in ("", "b", "\n")]
    assert not differing(model, tmp_path / "m.gguf", [*all_texts(tmp_path / "m.gguf", texts), *runs])
    assert not report.notes or "texts tried" not in report.notes[-1]
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer == "equal"


def scores_of(merges):
    names = sorted({part for pair in merges for part in (*pair, "".join(pair))})
    vocab = {name: token for token, name in enumerate(names)}
    return dict(zip(names, merge_scores(vocab, merges, names, [True] * len(names), "it"), strict=True))


def test_merges_that_stand_mixed_are_refused_where_the_order_matters():
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # not of one letter
        scores_of([("a", "bc"), ("a", "b"), ("b", "c"), ("ab", "c")])
    runs = [("   ", " "), ("  ", "  "), ("  ", " "), (" ", "   "), (" ", "  "), (" ", " ")]
    assert len(set(scores_of(runs).values())) <= 3
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # something else comes after
        scores_of([*runs, ("x", "y")])
    rightmost = [(" ", "  "), ("  ", "  "), ("  ", " "), (" ", " "), ("   ", " "), (" ", "   ")]
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # runs come out otherwise
        scores_of([*rightmost, ("    ", "  "), ("  ", "    "), ("   ", "   ")])
