"""The tokenizer of a file in llama.cpp; nothing else of the file is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gguf_ext.errors import RuntimeFailedError
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.run.opened import model_from_file


class LoadedVocabulary:
    """The tokenizer of a file in llama.cpp, and a context manager. Raises RuntimeFailedError where llama.cpp refuses
    the file, DependencyError without llama-cpp-python."""

    def __init__(self, path: str | Path):
        self._c = library()
        settings = self._c.llama_model_default_params()
        settings.vocab_only = True
        forget_errors()
        self._model = model_from_file(self._c, os.fsencode(path), settings)
        if not self._model:
            raise RuntimeFailedError(f"llama.cpp cannot load {path} ({last_error()}): export it again")
        self._vocab = self._c.llama_model_get_vocab(self._model)

    def __enter__(self) -> LoadedVocabulary:
        return self

    def __exit__(self, *error: object) -> None:
        self._c.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """As `LlamaSession.tokenize`."""
        return tokenize(self._c, self._vocab, text)


def tokenize(c: Any, vocab: Any, text: str) -> list[int]:
    """Token ids of llama.cpp, with the tokens put around a text, and those that stand in it recognized."""
    data = text.encode()
    length = len(data) + 8
    while True:
        ids = (c.llama_token * length)()
        count = c.llama_tokenize(vocab, data, len(data), ids, length, True, True)
        if count >= 0:
            return list(ids[:count])
        length = -count
