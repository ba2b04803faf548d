"""The tokenizer of a file, made for transformers and tried against llama.cpp before anything is trained on it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.model.tokenizer import REMEDY, read_tokenizer
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable
from gguf_ext.tokenizer.keys import PRE
from gguf_ext.tokenizer.pretokenizer import DEVIATIONS
from gguf_ext.tokenizer.vocabulary import reference_of
from gguf_ext.verify.trial import NOT_TRIED, try_tokenizer
from sqft_plugins.progress import say


def tried_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """`read_tokenizer`, with which llama.cpp agrees on some thousand texts (`verify.trial`). Without llama-cpp-python
    it is not tried, and said so. Raises UnsupportedTokenizerError where llama.cpp cuts a text otherwise, unless that is
    a known fault of its own."""
    tokenizer = read_tokenizer(file)
    if reason := unloadable(file.metadata):
        say(f"the tokenizer of {file.path} was not tried in llama.cpp: {reason}")
        return tokenizer

    _, line = try_tokenizer(file.path, file.metadata, reference_of(tokenizer))
    if not line:
        return tokenizer
    if line == NOT_TRIED or str(file.metadata.get(PRE)) in DEVIATIONS:
        say(f"{file.path}: {line}")
        return tokenizer
    raise UnsupportedTokenizerError(f"the tokenizer of {file.path} cannot be made exactly ({line}): {REMEDY}")
