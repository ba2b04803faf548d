"""The tokenizer of a file, tried: llama.cpp itself cuts some hundred texts, and the model's own tokenizer does.

What is compared of two tokenizers says that a file holds what it should; only this says that llama.cpp makes the same
of it. Texts: scripts, white space of all kinds, every way to put an added token into a text, and random tokens of the
vocabulary. Nothing of the file but its vocabulary is loaded.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import decoders

from gguf_ext.arch import Entry
from gguf_ext.errors import RuntimeFailedError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable
from gguf_ext.run.vocabulary import LoadedVocabulary
from gguf_ext.tokenizer.keys import MODEL, TOKENS, TYPES
from gguf_ext.tokenizer.stripping import SPECIAL_KINDS, SPECIAL_TEXTS, fitting_name, stripped, stripped_in
from gguf_ext.tokenizer.vocabulary import Vocabulary
from gguf_ext.write.file import write_tensors
from sqft_plugins.errors import DependencyError

PROSE = """The quick brown fox doesn't jump; I'll say it's done! DON'T 'sup?
Ünïcödé, naïve café, straße; Здравствуй, мир! Γειά σου Κόσμε. こんにちは世界、元気ですか？ 你好，世界。 안녕하세요
مرحبا بالعالم שלום नमस्ते สวัสดี e\u0301 \u1e69 ﬁ ① Ⅷ ½ ٣٤٥ 𝒳 👩‍👩‍👧‍👦🇩🇪 ❤️ 🤷🏽‍♀️
0 12 345 6789 3.14159 1,000,000 2024-11-05 x2y <b>bold</b> ()[]{}<>!@#$%^&* http://example.com/a?b=c&d=1#x
def f(x):\n    if x > 0:\n\t\treturn {'a': [1, 2]}   # why   \n\n\n\n
        deep = x ** 2  \n \n  \n\r\nCRLF \x0b \x0c end"""
BLANKS = ("", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\t ", "\r\n", "\u00a0", "\u3000", "▁", " ▁", "▁ ")
AROUND = (
    "{0}", "a{0}b", "a {0} b", " {0} ", "{0}{0}", "{0} {0}", "\n{0}\n", "a{0}\n\nb", "a\t{0}  b", "{0}a", "{0} a",
    "a {0}", "9{0}9", "({0})", "é{0}é",
)  # fmt: skip
ADDED, SEQUENCES, LENGTH, LONGEST = 48, 160, 12, 40
"""Added tokens that are tried in all ways, random texts, tokens of one, and the longest run of one character."""


NAME = "general.name"
NOT_TRIED = "llama-cpp-python is not installed, so the tokenizer was not tried in llama.cpp"


def compare_cuts(ours: Vocabulary, read: GGUFFile) -> tuple[list[tuple[str, str]], list[str]]:
    """What llama.cpp itself makes of a file that has the tokens and kinds of `ours`: the differences (metadata key,
    line), and what it cuts otherwise than the model in any file. First the names by which it strips white space beside
    special tokens (`tokenizer.stripping`), then a trial."""
    name = str(read.metadata.get(NAME, ""))
    wanted, found = stripped(ours.rule, ours.tokens, ours.kinds), stripped_in(read.metadata)
    if found is None:
        line = f"{name!r} makes llama.cpp look for tokens of Phi-3 that the file lacks: it cannot load the file"
        return [(NAME, line)], list(ours.limits)
    if wanted is not None and (other := sorted(wanted.differing(found))):
        line = (
            f"{name!r} decides in llama.cpp about white space beside {len(other)} special tokens, and wrongly, as of "
            f"{ours.tokens[other[0]]!r}: {fitting_name(name, ours.rule)!r} would do"
        )
        return [(NAME, line)], list(ours.limits)

    named = Entry(NAME, fitting_name(name, ours.rule), "string")
    architecture = str(read.metadata.get("general.architecture"))
    otherwise, limit = tried_otherwise(read.path, read.metadata, [named, *ours.entries()], architecture, ours.reference)
    differences = [("tokenizer", f"{otherwise}, and with the model's own rightly")] if otherwise else []
    return differences, [*ours.limits, *([limit] if limit else [])]


def try_tokenizer(
    path: str | Path, metadata: Mapping[str, Any], reference: Callable[[str], list[int]] | None, own: Path | None = None
) -> tuple[str, str]:
    """What llama.cpp cuts otherwise than `reference`, a line each, "" for nothing: with the file though not with `own`
    (a difference), and with both (a limit of llama.cpp's).

    metadata: of the file. reference: text → token ids; None takes what `own` gives. own: a file with the entries that
    ours would have; None where the file is ours.
    """
    texts = sample_texts(metadata)
    try:
        found = _cuts(path, texts)
        ours = found if own is None else _cuts(own, texts)
    except DependencyError:
        return "", NOT_TRIED
    except RuntimeFailedError as error:
        return "", f"its tokenizer could not be tried: {error}"

    right = ours if reference is None else [reference(text) for text in texts]
    wrong = [at for at in range(len(texts)) if found[at] != right[at]]
    different = [texts[at] for at in wrong if ours[at] == right[at]]
    limited = [texts[at] for at in wrong if ours[at] != right[at]]
    return _line(different, len(texts)), _line(limited, len(texts))


def tried_otherwise(
    path: str | Path,
    metadata: Mapping[str, Any],
    wanted: Sequence[Entry],
    architecture: str,
    reference: Callable[[str], list[int]] | None,
) -> tuple[str, str]:
    """`try_tokenizer` of a file of another's making. wanted: the entries that ours would have."""
    if reason := unloadable(metadata):
        return "", f"its tokenizer could not be tried: {reason}"
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "vocabulary.gguf"
        write_tensors(own, architecture, wanted, [], None)
        return try_tokenizer(path, metadata, reference, own)


def _cuts(path: str | Path, texts: Sequence[str]) -> list[list[int]]:
    with LoadedVocabulary(path) as vocabulary:
        return [vocabulary.tokenize(text) for text in texts]


def _line(wrong: Sequence[str], tried: int) -> str:
    if not wrong:
        return ""
    shortest = min(wrong, key=lambda text: (len(text), text))
    return f"of {tried} texts tried llama.cpp cuts {len(wrong)} otherwise, the shortest {shortest[:60]!r}"


def sample_texts(metadata: Mapping[str, Any]) -> list[str]:
    """Texts for the tokenizer of this file, always the same; none twice."""
    tokens = metadata[TOKENS]
    kinds = metadata.get(TYPES) or [1] * len(tokens)
    said = _said_in_bytes if metadata.get(MODEL) == "gpt2" else _said_plainly
    pieces = [said(text) for text, kind in zip(tokens, kinds, strict=False) if kind == 1]
    texts = [*_fixed(), *_with_special(tokens, kinds), *_random([piece for piece in pieces if piece])]
    return list(dict.fromkeys(texts))


def _fixed() -> Iterator[str]:
    yield PROSE
    for line in PROSE.split("\n"):
        yield from (line, f" {line}", f"{line} ", f"\n{line}")
        yield from line.split(" ")
    for blank in BLANKS:
        yield from (blank, f"{blank}a", f"a{blank}", f"a{blank}b", f"{blank}A{blank}1{blank}.{blank}")
    for count in range(2, LONGEST):
        yield from (f"{letter * count}x" for letter in " \n\t")
        yield from (f"x{' ' * count}", f"{' ' * count}\n{' ' * count}x", "=" * count, "9" * count, "a" * count)


def _with_special(tokens: Sequence[str], kinds: Sequence[int]) -> Iterator[str]:
    special = [text for text, kind in zip(tokens, kinds, strict=False) if kind in SPECIAL_KINDS and text]
    named = [text for text in tokens if text in SPECIAL_TEXTS and text not in special]
    # of many alike, such as <unused7>, a few are enough
    chosen = special[: ADDED // 2] + special[ADDED // 2 :][-ADDED // 2 :] + named
    for text in chosen:
        yield from (way.format(text) for way in AROUND)
    for one, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        yield from (f"{one}{other}", f"{one} {other}", f"{one}a{other}", f"{one}\na {other} b")
    if special:
        yield "x".join(special)
    yield from _overlapping(special)


def _overlapping(special: Sequence[str]) -> Iterator[str]:
    """Texts in which two special tokens share some letters: which of them is found first decides."""
    begin: dict[str, str] = {}
    for text in special:
        for length in range(1, len(text)):
            begin.setdefault(text[:length], text)
    for text in special:
        for length in range(1, len(text)):
            other = begin.get(text[-length:])
            if other is not None and other != text and len(set(text)) > 1:
                yield text + other[length:]


def _random(pieces: Sequence[str]) -> Iterator[str]:
    """Of what the tokens of the vocabulary say, joined without regard to sense."""
    dice = random.Random(0)
    for _ in range(SEQUENCES if pieces else 0):
        yield "".join(dice.choice(pieces) for _ in range(LENGTH))


def _said_plainly(token: str) -> str:
    return token.replace("▁", " ")


def _said_in_bytes(token: str) -> str:
    """Of byte-level BPE; "" where the token is part of a character."""
    text = decoders.ByteLevel().decode([token])
    return "" if "\ufffd" in text else text
