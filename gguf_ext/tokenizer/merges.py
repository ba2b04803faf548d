"""Merges of a BPE tokenizer with byte fallback → the scores by which llama.cpp's `llama` tokenizer merges.

A tokenizer with merges joins the pair of neighbours whose merge stands first in its list. llama.cpp has no list: it
joins the neighbours whose text, joined, is the token of the best score, and of equal ones those furthest left
(llama-vocab.cpp, llm_tokenizer_spm_session). Both do the same where every way to cut a token in two is a merge and the
merges of a token stand together, as transformers makes them of a sentencepiece model.

There all tokens of one score share their place in the list: runs of spaces, which Llama and Mistral give -1e9, stand
mixed (transformers, generate_merges: by score, then by the length of the left part). They get one score here too,
where trying every length shows that the order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from gguf_ext.errors import UnsupportedTokenizerError

LENGTHS = 4
"""Runs of up to so many times the longest token are tried, from any state that the other merges leave."""
REMEDY = "texts would be cut differently; use a byte-level BPE or a sentencepiece tokenizer"

Pair = tuple[str, str]


class _Group(NamedTuple):
    """Tokens whose merges stand mixed, in ranks from `first` to before `end`."""

    tokens: list[str]
    first: int
    end: int


def merge_scores(
    vocab: Mapping[str, int], merges: Sequence[Pair], tokens: Sequence[str], merged: Sequence[bool], source: str
) -> list[float]:
    """One score a token: minus the rank of its first merge; what no merge makes comes last.

    vocab: of the model section. tokens: one a token id, in the file. merged: whether llama.cpp reaches the token by
    merges, one a token id. source: for messages. Raises UnsupportedTokenizerError where llama.cpp's order cannot be the
    tokenizer's.
    """
    groups = _groups(merges)
    rank = {token: group.first for group in groups for token in group.tokens}
    for group in groups:
        if len(group.tokens) > 1:
            _check_mixed(group, rank, merges, source)
    _check_closed(vocab, merges, merged, source)

    return [-float(rank.get(name, len(merges))) for name in tokens]


def _groups(merges: Sequence[Pair]) -> list[_Group]:
    """The tokens that merges make, in the order of the list; those together whose merges do not stand apart."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
        last[left + right] = rank

    groups: list[_Group] = []
    for token, start in first.items():  # by rank
        if groups and start < groups[-1].end:
            before = groups[-1]
            groups[-1] = _Group([*before.tokens, token], before.first, max(before.end, last[token] + 1))
        else:
            groups.append(_Group([token], start, last[token] + 1))
    return groups


def _check_closed(vocab: Mapping[str, int], merges: Sequence[Pair], merged: Sequence[bool], source: str) -> None:
    """Raises for a token that llama.cpp would join and the tokenizer does not."""
    pairs = set(merges)
    for name, token in vocab.items():
        if not merged[token]:
            continue
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocab and right in vocab and (left, right) not in pairs:
                raise UnsupportedTokenizerError(
                    f"merge {left!r} + {right!r} is missing in the tokenizer of {source}, and llama.cpp would do it: "
                    + REMEDY
                )


def _check_mixed(group: _Group, rank: Mapping[str, int], merges: Sequence[Pair], source: str) -> None:
    """Raises unless from the group on only runs of one character are merged, and come out alike of every run. rank: of
    each token, by which llama.cpp would merge."""
    letters = set("".join(left + right for left, right in merges[group.first :]))
    if len(letters) == 1 and _alike(letters.pop(), group.first, rank, merges):
        return
    raise UnsupportedTokenizerError(
        f"merges of {group.tokens[1]!r} in the tokenizer of {source} do not stand together: llama.cpp would cut texts "
        "differently; use a byte-level BPE or a sentencepiece tokenizer"
    )


def _alike(letter: str, first: int, rank: Mapping[str, int], merges: Sequence[Pair]) -> bool:
    """Whether the merges from `first` on, and llama.cpp's by `rank`, end alike.

    What stands before is done when they begin. So the runs are tried as those merges leave them: whole, and without a
    first or last piece, which a neighbour may have taken.
    """
    runs = {
        (len(left), len(right)): (place, rank[left + right])
        for place, (left, right) in enumerate(merges)
        if set(left + right) == {letter}
    }
    before = {pair: place for pair, (place, _) in runs.items() if place < first}
    within = {pair: place for pair, (place, _) in runs.items() if place >= first}
    theirs = {pair: score for pair, (place, score) in runs.items() if place >= first}

    longest = max(left + right for left, right in runs)
    for count in range(2, LENGTHS * longest + 1):
        pieces = _joined([1] * count, before)
        for part in (pieces, pieces[1:], pieces[:-1], pieces[1:-1]):
            if _joined(part, within) != _joined(part, theirs):
                return False
    return True


def _joined(pieces: Sequence[int], ranks: Mapping[tuple[int, int], int]) -> list[int]:
    """Lengths of the pieces after all merges: the best rank first, of equal ones the leftmost."""
    pieces = list(pieces)
    while True:
        found = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        at = min(found)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
