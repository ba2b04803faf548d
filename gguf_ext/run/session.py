"""llama.cpp as a runtime, over the C functions that llama-cpp-python wraps.

Its `Llama` class keeps the logits of the whole context (262 k entries a token for Gemma); here a text goes through in
chunks and only one chunk of logits is ever there, and the options of a question go on from one prompt.
"""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf_ext.backend import choosing
from gguf_ext.errors import ContextError, DamagedFileError, GGUFError, RuntimeFailedError, UnloadableFileError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.adapters import Adapters
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.run.loadable import check_context, check_loadable
from gguf_ext.run.opened import model_from_file
from gguf_ext.run.vocabulary import tokenize
from sqft_plugins.evaluate.options import Question, Score, token_scores
from sqft_plugins.hardware import cores

CONTEXT = 4096
CHUNK = 64
"""Tokens that go through at once: at most that many rows of logits are in memory."""
OPTIONS = 8
"""Options of one question that are in the attention cache at once."""


Row = tuple[int, int, int]
"""Token, position, sequence."""


class LlamaCpp:
    """The engine `llama.cpp` of `sqft eval`: opens GGUF files."""

    name = "llama.cpp"

    def opens(self, path: Path) -> bool:
        return Path(path).suffix == ".gguf"

    def open(self, path: Path, **options: Any) -> LlamaSession:
        """options: those of LlamaSession. Raises GGUFError for an option that a GGUF file cannot have."""
        unknown = sorted(set(options) - set(inspect.signature(LlamaSession).parameters))
        if unknown:
            raise GGUFError(f"--{unknown[0]} cannot be used with {path}: leave it out, a GGUF file is whole")
        return LlamaSession(path, **options)


class LlamaSession:
    """A loaded GGUF file, and a context manager.

    threads: None for all. context: the longest text in tokens, no more than the model's. kv_type: "f16" or "f32", the
    type of the attention cache. flash_attention: None lets llama.cpp choose. Raises DependencyError, GGUFError for a
    missing file, RuntimeFailedError for a file that llama.cpp refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        context: int = CONTEXT,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
    ):
        self._stack = ExitStack()  # what `close` frees
        self._c = library()

        # what llama.cpp would die of
        self.path = Path(path)
        file = _read(path)
        check_loadable(file)
        self.context = min(context, int(file.metadata[f"{file.metadata['general.architecture']}.context_length"]))
        check_context(file, self.context)

        # the model
        settings = self._c.llama_model_default_params()
        forget_errors()
        with choosing(sparse=False):  # what is measured and compared here is llama.cpp itself
            self._model = model_from_file(self._c, os.fsencode(path), settings)
        if not self._model:
            raise RuntimeFailedError(
                f"llama.cpp cannot load {path} ({last_error()}): export it again, or check it with `sqft verify`"
            )
        self._stack.callback(self._c.llama_model_free, self._model)

        # the context
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._c.llama_vocab_n_tokens(self._vocab))
        self._context = self._c.llama_init_from_model(self._model, self._settings(threads, kv_type, flash_attention))
        if not self._context:
            self.close()
            raise RuntimeFailedError(
                f"llama.cpp cannot run {path} with context={context} ({last_error()}): use a smaller context"
            )
        self._stack.callback(self._c.llama_free, self._context)
        self._batch = self._c.llama_batch_init(CHUNK, 0, 1)
        self._stack.callback(self._c.llama_batch_free, self._batch)
        self._adapters = Adapters(self._model, self._context, file)
        self._stack.callback(self._adapters.close)

    def set_adapters(self, adapters: Mapping[str | Path, float]) -> None:
        """Makes these LoRA files (file → scale) the active ones, and no others; `{}` is the bare model. A file is read
        once and stays until the session is closed. Raises GGUFError for a missing or damaged file,
        AdapterMismatchError for a file that does not fit the model."""
        for file in adapters:
            if str(file) not in self._adapters.files:
                self._adapters.add(str(file), file)
        self._adapters.set({str(file): scale for file, scale in adapters.items()})

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The greedy completion of each prompt in order, without the prompt. It ends at an end token, after
        `max_new_tokens`, or before the first of the `stop` texts."""
        for prompt in prompts:
            yield self._complete(self.tokenize(prompt), max_new_tokens, stop)

    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        """float32 [len(tokens) - 1]: log-probability of each token after the first, given those before it."""
        if len(tokens) < 2:
            return torch.zeros(0)
        following = torch.tensor(list(tokens[1:]))
        found, at = [], 0
        for logits in self.logits(tokens[:-1]):
            part = following[at : at + len(logits)]
            at += len(part)
            found.append(token_scores(logits, part)[0])
        return torch.cat(found)

    def logits(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """float32 [up to CHUNK, vocabulary] for the tokens in order; a chunk is only valid until the next."""
        self._fits(len(tokens))
        self._clear()
        yield from self._logits(_sequence(tokens))

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """The score of each option of each question. A prompt goes through once, and its options, each a sequence that
        shares the prompt's part of the cache, together; only their tokens get logits."""
        return [self._score(question) for question in questions]

    def tokenize(self, text: str) -> list[int]:
        """Token ids as transformers gives them: with the special tokens that the model puts around a text, and those
        that stand in the text recognized."""
        return tokenize(self._c, self._vocab, text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return b"".join(token_piece(self._vocab, token) for token in tokens).decode("utf-8", errors="replace")

    def close(self) -> None:
        """Frees the adapters and the model; a second call does nothing."""
        self._stack.close()
        self._model = self._context = None

    def __enter__(self) -> LlamaSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_stack"):  # arguments that the constructor does not have stop it before its first line
            self.close()

    # --- inside ---

    def _settings(self, threads: int | None, kv_type: str, flash_attention: bool | None) -> Any:
        settings = self._c.llama_context_default_params()
        settings.n_ctx = self.context
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_seq_max = 1 + OPTIONS
        settings.kv_unified = True  # one cache for all sequences: a prompt lies in it once, and may fill it
        settings.n_threads = settings.n_threads_batch = threads or cores()
        kinds = {"f32": 0, "f16": 1}  # ggml's numbers
        if kv_type not in kinds:
            raise GGUFError(f"kv_type={kv_type!r} is unknown: use f16 or f32")
        settings.type_k = settings.type_v = kinds[kv_type]
        if flash_attention is not None:
            settings.flash_attn_type = int(flash_attention)
        return settings

    def _complete(self, prompt: list[int], max_new_tokens: int, stop: Sequence[str]) -> str:
        self._fits(len(prompt) + max_new_tokens)
        if not prompt:
            raise GGUFError("prompt is empty and the model has no token to begin with: give a prompt")

        self._clear()
        self._fill(prompt[:-1])
        text, last = b"", prompt[-1]
        for at in range(len(prompt) - 1, len(prompt) - 1 + max_new_tokens):
            self._decode([(last, at, 0)], logits=True)
            last = int(self._rows(1)[0].argmax())
            if self._c.llama_vocab_is_eog(self._vocab, last):
                break
            text += token_piece(self._vocab, last)
            if stop and (cut := _first(text.decode("utf-8", errors="replace"), stop)) is not None:
                return cut
        return text.decode("utf-8", errors="replace")

    def _score(self, question: Question) -> list[Score]:
        self._fits(question.tokens)
        self._clear()
        self._fill(question.context[:-1])
        scores: list[Score] = []
        for part in _parts(question, self.context):
            # the prompt's last token stands before each option: what follows it is the option's first token
            rows = [
                (token, len(question.context) - 1 + index, sequence)
                for sequence, option in enumerate(part, start=1)
                for index, token in enumerate((question.context[-1], *option[:-1]))
            ]
            for sequence in range(1, len(part) + 1):
                self._c.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
            targets = torch.tensor([token for option in part for token in option])
            found = [
                token_scores(logits, targets[at : at + len(logits)])
                for at, logits in zip(range(0, len(rows), CHUNK), self._logits(rows), strict=True)
            ]
            for sequence in range(1, len(part) + 1):
                self._c.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            lengths = list(map(len, part))
            chosen, greedy = (torch.cat(each).split(lengths) for each in zip(*found, strict=True))
            scores += [
                (float(one.double().sum()), bool(right.all())) for one, right in zip(chosen, greedy, strict=True)
            ]
        return scores

    @property
    def _memory(self) -> Any:
        return self._c.llama_get_memory(self._context)

    def _clear(self) -> None:
        self._c.llama_memory_clear(self._memory, True)

    def _fill(self, tokens: Sequence[int]) -> None:
        """Tokens whose logits nobody asks for, in sequence 0."""
        for part in _chunks(_sequence(tokens)):
            self._decode(part, logits=False)

    def _logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        for part in _chunks(rows):
            self._decode(part, logits=True)
            yield self._rows(len(part))

    def _decode(self, rows: Sequence[Row], logits: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = logits
        forget_errors()
        if code := self._c.llama_decode(self._context, batch):
            raise RuntimeFailedError(
                f"llama.cpp failed at token {rows[0][1]} of {self.path} (code {code}, {last_error()}): use a smaller "
                "context"
            )

    def _rows(self, count: int) -> Tensor:
        """float32 [count, vocabulary]: the logits that the last decode was asked for."""
        pointer = self._c.llama_get_logits(self._context)
        rows = np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (count, self.vocabulary_size)
        )
        return torch.from_numpy(rows)

    def _fits(self, tokens: int) -> None:
        if tokens > self.context:
            raise ContextError(tokens, self.context, self.path)


def _sequence(tokens: Sequence[int]) -> list[Row]:
    return [(token, position, 0) for position, token in enumerate(tokens)]


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]


def _parts(question: Question, context: int) -> Iterator[list[tuple[int, ...]]]:
    """The options that are in the cache together: at most OPTIONS, and no more than find room beside the prompt."""
    part: list[tuple[int, ...]] = []
    free = room = context - (len(question.context) - 1)
    for option in question.options:
        if part and (len(part) == OPTIONS or len(option) > free):
            yield part
            part, free = [], room
        part.append(option)
        free -= len(option)
    yield part


def _read(path: str | Path) -> GGUFFile:
    try:
        return GGUFFile(path)
    except DamagedFileError as error:
        raise UnloadableFileError(f"llama.cpp cannot load {path}: {error}") from error


def token_piece(vocab: Any, token: int, special: bool = False) -> bytes:
    """The bytes of a token, of any length; of a special one only where `special`."""
    c = library()
    buffer = ctypes.create_string_buffer(256)
    count = c.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    if count < 0:
        buffer = ctypes.create_string_buffer(-count)
        count = c.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    return buffer.raw[:count]


def _first(text: str, stop: Sequence[str]) -> str | None:
    """The text before the earliest stop, None where there is none."""
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else None
