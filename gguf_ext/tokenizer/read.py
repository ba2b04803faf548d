"""The tokenizer of a model → a `Vocabulary` that gives the token ids which transformers gives.

transformers is asked for its tokenizer as it stands in memory, because classes such as `LlamaTokenizer` put their own
rules over those in tokenizer.json; the gguf package's `SpecialVocab` reads the files. A folder with nothing but a
sentencepiece tokenizer.model is read without it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_ext.arch import Config
from gguf_ext.errors import GGUFError, MissingTokenizerError, UnsupportedTokenizerError
from gguf_ext.tokenizer.bpe import from_transformers
from gguf_ext.tokenizer.ending import END_TOKENS, place_ends
from gguf_ext.tokenizer.limits import added_limits
from gguf_ext.tokenizer.sentencepiece import read_sentencepiece
from gguf_ext.tokenizer.stripping import JINA, best_rule, wanted_stripping
from gguf_ext.tokenizer.tekken import load_mistral
from gguf_ext.tokenizer.vocabulary import SPACE, TokenKind, Vocabulary, check, reference_of
from sqft_plugins.checkpoint import load_tokenizer
from sqft_plugins.errors import CheckpointError
from sqft_plugins.hardware import uncollected
from sqft_plugins.progress import say


@uncollected()
def read_vocabulary(folder: Path, config: Config, pre: str | None = None) -> Vocabulary:
    """The tokenizer of a model folder, with one token for each row of the embedding.

    pre: llama.cpp's name of the pre-tokenizer, to override the one found. A tokenizer.json that llama.cpp cannot follow
    gives way to a tokenizer.model of the same tokens. Raises MissingTokenizerError, UnknownPreTokenizerError,
    UnsupportedTokenizerError.
    """
    has_model = (folder / "tokenizer.model").is_file()
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tekken.json")):
        vocabulary = _by_transformers(folder, config, pre, has_model)
    elif not has_model:
        raise MissingTokenizerError(
            f"model {folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it"
        )
    elif pre is not None:
        raise GGUFError(
            f"--pre {pre}: {folder}/tokenizer.model is sentencepiece, which has no pre-tokenizer: leave it out"
        )
    else:
        vocabulary = _by_sentencepiece(folder, config)

    return _completed(vocabulary, str(folder), config)


def from_tokenizer(tokenizer: Any, source: str, config: Config, pre: str | None = None) -> Vocabulary:
    """`read_vocabulary` of a tokenizer of transformers in memory. source: for messages."""
    return _completed(from_transformers(tokenizer, source, pre), source, config)


def _by_transformers(folder: Path, config: Config, pre: str | None, has_model: bool) -> Vocabulary:
    tokenizer, limits = load_mistral(folder)
    try:
        vocabulary = from_transformers(tokenizer, str(folder), pre)
    except UnsupportedTokenizerError as error:
        if not has_model or pre is not None:
            raise
        return _of_same_tokens(folder, config, tokenizer, error)
    return replace(vocabulary, limits=(*limits, *vocabulary.limits))


def _by_sentencepiece(folder: Path, config: Config) -> Vocabulary:
    """Of tokenizer.model, with transformers' reading of it as reference where it has one."""
    vocabulary = read_sentencepiece(folder, config)
    try:
        tokenizer = load_tokenizer(folder)
    except CheckpointError:  # it needs packages that we do not
        return vocabulary
    return replace(vocabulary, reference=reference_of(tokenizer))


def _of_same_tokens(folder: Path, config: Config, tokenizer: Any, error: UnsupportedTokenizerError) -> Vocabulary:
    """tokenizer.model in place of a tokenizer.json that llama.cpp cannot follow. Raises `error` for a tokenizer.model
    that is not BPE, or has other tokens."""
    try:
        vocabulary = read_sentencepiece(folder, config)
    except UnsupportedTokenizerError:
        raise error from None

    ids = tokenizer.get_vocab()
    named = [
        (text, token) for token, text in enumerate(vocabulary.tokens) if vocabulary.kinds[token] != TokenKind.UNUSED
    ]
    if any(ids.get(text, ids.get(text.replace(" ", SPACE))) != token for text, token in named):
        raise error

    say(f"{error}; the file has the tokenizer.model that stands beside it")
    flags = [
        {"id": token, "lstrip": entry.lstrip, "rstrip": entry.rstrip, "single_word": entry.single_word}
        for token, entry in tokenizer.added_tokens_decoder.items()
    ]
    return replace(vocabulary, json={"added_tokens": flags}, reference=reference_of(tokenizer))


def _completed(vocabulary: Vocabulary, source: str, config: Config) -> Vocabulary:
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if "eos" not in vocabulary.special and isinstance(eos, int):
        vocabulary = replace(vocabulary, special={**vocabulary.special, "eos": eos})
    vocabulary = vocabulary.resized(int(config["vocab_size"]))
    check(vocabulary, source)

    ends = config.get(END_TOKENS) or []
    vocabulary = replace(vocabulary, special=place_ends(ends, vocabulary.tokens, vocabulary.special))
    return _with_stripping(vocabulary)


def _with_stripping(vocabulary: Vocabulary) -> Vocabulary:
    """With the rule by which llama.cpp strips white space beside special tokens, and what of their flags it cannot."""
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    wanted = wanted_stripping(vocabulary.json.get("added_tokens", []), len(tokens))
    rule = best_rule(wanted, tokens, kinds, jina=vocabulary.pre in ("default", "gpt-2", JINA))
    limits = added_limits(vocabulary.json, wanted, rule, tokens, kinds)
    return replace(
        vocabulary,
        rule=rule,
        pre=JINA if rule == JINA else vocabulary.pre,
        limits=(*vocabulary.limits, *limits),
    )
