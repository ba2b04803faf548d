"""The tokenizer of a file as one of transformers', with the token ids that llama.cpp gives.

`llama` merges the neighbours whose text, joined, is the token of the best score; that is a BPE whose merges are all
cuts of all tokens, by score. `gpt2` has its merges in the file, and names the expressions that cut a text before.
transformers' own reading of a file (`gguf_file=`) leaves out `<bos>`, names of pre-tokenizers and added tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.chat_templates import DEFAULT, ChatTemplates
from gguf_ext.tokenizer.keys import DEFAULT_IDS, MERGES, MODEL, OFF, PRE, PREFIX, SCORES, SPECIAL_KEYS, TOKENS, TYPES
from gguf_ext.tokenizer.keys import id_key as key_of
from gguf_ext.tokenizer.pre_names import SKIPS, adds_bos, cuts_alike
from gguf_ext.tokenizer.pretokenizer import KNOWN
from gguf_ext.tokenizer.stripping import SPECIAL_TEXTS, Stripped, stripped_in
from gguf_ext.tokenizer.vocabulary import SPACE, TokenKind
from sqft_plugins.hardware import uncollected

REMEDY = "give the folder of the model's tokenizer with --tokenizer"
CUT_OUT = (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.USER_DEFINED)
"""Kinds of tokens that are found in a text before anything else."""


@uncollected()
def read_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, with its special tokens and chat templates. Raises UnsupportedTokenizerError for one
    that nobody here can make."""
    said = file.metadata
    tokens, kinds = _tokens(file)
    for key, off in OFF.items():
        if said.get(key, off) != off:
            raise _refusal(file, f"{key}={said[key]!r} is no rule that is known here")

    makers = {"llama": _llama, "gpt2": _gpt2}
    if (name := str(said.get(MODEL))) not in makers:
        raise _refusal(file, f"{MODEL}={name!r}, only {' and '.join(makers)} are known here")
    tokenizer = makers[name](file, tokens)
    tokenizer.add_tokens(list(_added(file, tokens, kinds)))

    special = _special(said, name, len(tokens))
    _surround(tokenizer, file, tokens, special)
    named = {f"{name}_token": tokens[token] for name, token in special.items()}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, name_or_path=str(file.path), **named
    )
    templates = ChatTemplates(file).templates
    made.chat_template = templates.get(DEFAULT) if set(templates) <= {DEFAULT} else dict(templates)
    return made


def _tokens(file: GGUFFile) -> tuple[list[str], list[int]]:
    """The text and the kind of each token. Raises UnsupportedTokenizerError."""
    tokens = file.metadata.get(TOKENS)
    if not isinstance(tokens, list) or not tokens:
        raise _refusal(file, "it holds no tokens")
    if len(set(tokens)) != len(tokens):
        raise _refusal(file, "two of its tokens have one text")
    kinds = file.metadata.get(TYPES, [int(TokenKind.NORMAL)] * len(tokens))
    if len(kinds) != len(tokens):
        raise _refusal(file, f"it has {len(tokens)} tokens and {len(kinds)} kinds of them")
    return tokens, kinds


# --- llama ---


def _llama(file: GGUFFile, tokens: Sequence[str]) -> Tokenizer:
    scores = file.metadata.get(SCORES)
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _refusal(file, f"it has no score for each of its {len(tokens)} tokens")
    vocabulary = {text: token for token, text in enumerate(tokens)}
    unknown = tokens[_special(file.metadata, "llama", len(tokens)).get("unk", 0)]
    model = models.BPE(vocabulary, merges_by_score(tokens, scores), byte_fallback=True, unk_token=unknown)

    tokenizer = Tokenizer(model)
    prefix = bool(file.metadata.get(f"{PREFIX}add_space_prefix", True))
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    stripped = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    return tokenizer


def merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every cut of every token in two others, those of the best score first; of one score the longest left part first,
    so that a run of one letter grows from its left as it does in llama.cpp, which joins the leftmost of equal ones."""
    known = set(tokens)
    found = [
        (-score, -cut, text[:cut], text[cut:])
        for text, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


# --- gpt2 ---


def _gpt2(file: GGUFFile, tokens: Sequence[str]) -> Tokenizer:
    merges = file.metadata.get(MERGES)
    if not isinstance(merges, list):
        raise _refusal(file, f"it has no {MERGES}")
    pre = str(file.metadata.get(PRE, ""))
    expressions = expressions_of(pre)
    if expressions is None:
        raise _refusal(file, f"{PRE}={pre!r} is no pre-tokenizer that is known here")

    vocabulary = {text: token for token, text in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    if wrong := next((pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()), ()):
        raise _refusal(file, f"the merge {' '.join(wrong)!r} makes no token")
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in SKIPS))
    cuts = [pre_tokenizers.Split(Regex(one), "isolated") for one in expressions]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, whole])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def expressions_of(pre: str) -> tuple[str, ...] | None:
    """The regular expressions behind llama.cpp's name of a pre-tokenizer; None for a name that is not known here."""
    return next((expressions for (expressions, _), name in KNOWN.items() if cuts_alike(name, pre)), None)


# --- both ---


def _added(file: GGUFFile, tokens: Sequence[str], kinds: Sequence[int]) -> Iterator[AddedToken]:
    """What is cut out of a text before anything else."""
    strips = stripped_in(file.metadata) or Stripped()
    for token, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if text and (kind in CUT_OUT or text in SPECIAL_TEXTS):
            yield AddedToken(
                text,
                special=kind != TokenKind.USER_DEFINED,
                normalized=False,
                lstrip=token in strips.left,
                rstrip=token in strips.right,
            )


def _special(said: Mapping[str, Any], model: str, size: int) -> dict[str, int]:
    """Name → token id, of the special tokens that the file names, or that llama.cpp takes where it names none."""
    ids = {name: said.get(key_of(name), DEFAULT_IDS[model].get(name)) for name in SPECIAL_KEYS}
    return {name: token for name, token in ids.items() if isinstance(token, int) and 0 <= token < size}


def _surround(tokenizer: Tokenizer, file: GGUFFile, tokens: Sequence[str], special: Mapping[str, int]) -> None:
    """Gives each text the start and end tokens that llama.cpp puts around it."""
    said = file.metadata
    begins = said.get(f"{PREFIX}add_bos_token", adds_bos(str(said.get(MODEL)), str(said.get(PRE, ""))))
    ends = said.get(f"{PREFIX}add_eos_token", False)
    around = {name: special[name] for name, wanted in (("bos", begins), ("eos", ends)) if wanted and name in special}
    if not around:
        return

    texts = {name: tokens[token] for name, token in around.items()}
    first, last = ([texts[name]] if name in texts else [] for name in ("bos", "eos"))
    parts = {part: [*first, f"${part}", *last] for part in "AB"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=parts["A"], pair=parts["A"] + parts["B"], special_tokens=[(texts[n], t) for n, t in around.items()]
    )


def _refusal(file: GGUFFile, why: str) -> UnsupportedTokenizerError:
    return UnsupportedTokenizerError(f"the tokenizer of {file.path} cannot be made exactly ({why}): {REMEDY}")
