"""`gguf_ext.load`: llama-cpp-python's `Llama`, with adapters that are switched and scaled between requests.

Importing this file imports llama_cpp.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_ext.backend import choosing, held, install, tell_why
from gguf_ext.blocks import TensorType
from gguf_ext.errors import ContextError, GGUFError, RuntimeFailedError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.adapters import Adapters
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.run.loadable import check_context, check_loadable
from gguf_ext.run.opened import opening
from gguf_ext.run.session import CONTEXT, token_piece
from gguf_ext.tokenizer.chat_templates import DEFAULT, ChatTemplates, metadata_texts
from gguf_ext.tokenizer.keys import TEMPLATE
from sqft_plugins.progress import say

library()  # raises where llama-cpp-python is missing, and takes llama.cpp's log
from llama_cpp import Llama, LlamaState  # noqa: E402
from llama_cpp.llama_cache import BaseLlamaCache  # noqa: E402
from llama_cpp.llama_chat_format import (  # noqa: E402
    ChatFormatterResponse,
    chat_formatter_to_chat_completion_handler,
)
from llama_cpp.llama_tokenizer import LlamaTokenizer  # noqa: E402

CHAT_FORMAT = "chat_template"
"""llama-cpp-python's name of the template NAME of the file is `chat_template.NAME`."""


def load(
    path: str | Path,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    n_ctx: int | None = None,
    sparse: bool = True,
    verbose: bool = False,
    **options: Any,
) -> AdapterLlama:
    """A GGUF file as an `AdapterLlama`, with the LoRA files `adapters` (name → file) loaded and off.

    n_ctx: the context in tokens; None for 4096, or the model's where that is shorter; 0 for the model's. sparse: Q4_0
    weights that are sparse enough are multiplied by our kernels (`gguf_ext.enable` has more); one line says what was
    kept so. options: those of llama-cpp-python's `Llama`, but for `lora_path`, which cannot be switched. Raises
    GGUFError for a missing or damaged file, AdapterMismatchError for an adapter of another base, RuntimeFailedError for
    what llama.cpp refuses, DependencyError.
    """
    if options.get("lora_path"):
        raise GGUFError(f"lora_path={options['lora_path']} cannot be switched: give it as adapters={{name: file}}")

    file = GGUFFile(path)
    if n_ctx is None:
        trained = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
        n_ctx = min(CONTEXT, trained) if isinstance(trained, int) and trained > 0 else CONTEXT

    try:
        return _load(sparse, str(path), adapters=adapters, file=file, n_ctx=n_ctx, verbose=verbose, **options)
    except GGUFError:
        raise
    except ValueError as error:  # what `Llama` raises where llama.cpp gives no model or context
        raise RuntimeFailedError(
            f"llama.cpp cannot load {path} with n_ctx={n_ctx} ({error}; {last_error()}): check it with `sqft verify`, "
            "or use a smaller context"
        ) from error


def _load(sparse: bool, path: str, **options: Any) -> AdapterLlama:
    if sparse and any(info.type == TensorType.Q4_0 for info in options["file"].tensors.values()):
        tell_why(install())
    before = held()
    with choosing(sparse):
        loaded = AdapterLlama(path, **options)
    added = {name: count - before[name] for name, count in held().items()}
    if added["tensors"]:
        say(
            f"{path}: {added['tensors']} tensors are kept sparse, {1 - added['kept'] / added['weights']:.0%} of their "
            f"weights are 0, {added['packed_bytes'] / 1e6:.0f} MB in memory for {added['source_bytes'] / 1e6:.0f}"
        )
    if added["ambiguous"]:
        say(f"{path}: {added['ambiguous']} tensors are left to llama.cpp: another open file has the same names")
    return loaded


class AdapterLlama(Llama):
    """`llama_cpp.Llama` with adapters; everything that it can do, it does.

        llm = gguf_ext.load("base.gguf", {"math": "math.gguf", "code": "code.gguf"})
        llm.set_adapters("math")                      # math alone
        llm.set_adapters({"math": 0.5, "code": 0.5})  # mixed
        llm.set_adapters()                            # the bare model

    Switch between requests, not while a stream is being read. A switch empties the attention cache; what a cache given
    to `set_cache` holds is found again under the adapters it was computed with. Several at once and their scales cost
    what their files cost: every active one is multiplied. `close` frees them with the model.

    `create_chat_completion` renders the file's own template as transformers does, unless `chat_format` or
    `chat_handler` is given; a file without one raises GGUFError there.
    """

    def __init__(
        self,
        model_path: str,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        file: GGUFFile | None = None,
        **options: Any,
    ):
        """file: what is at `model_path`, where it was read before. options: those of `Llama`. Raises
        UnloadableFileError."""
        self._stack = contextlib.ExitStack()  # what `Llama` closes, also where it was not begun
        file = file or GGUFFile(model_path)
        check_loadable(file)
        check_context(file, int(options.get("n_ctx") or 0))

        # without the templates: `Llama` would compile them, and choose formatters of its own by them
        texts = metadata_texts(file)
        self._metadata = {key: text for key, text in texts.items() if not key.startswith(TEMPLATE)}
        forget_errors()
        with opening(library()):
            super().__init__(model_path, **options)

        # the file's own templates and tokens
        self._metadata = texts
        self._templates = ChatTemplates(file)
        names = {DEFAULT, *self._templates.templates}
        self._chat_handlers = {f"{CHAT_FORMAT}.{name}": self._handler(name) for name in names}
        if options.get("chat_format") is None and self.chat_handler is None:
            self.chat_format = f"{CHAT_FORMAT}.{DEFAULT}"
        if options.get("tokenizer") is None:
            self.tokenizer_ = _Tokenizer(self)

        self._adapters = Adapters(self.model, self.ctx, file)
        self._stack.callback(self._adapters.close)  # before the context and the model, which were entered earlier
        try:
            for name, path in (adapters or {}).items():
                self._adapters.add(name, path)
        except Exception:
            self.close()
            raise

    @property
    def metadata(self) -> dict[str, str]:
        """As `Llama.metadata`, every value whole."""
        return self._metadata

    @metadata.setter
    def metadata(self, found: dict[str, str]) -> None:
        """What `Llama` reads is dropped: it would compile the templates, and choose formatters of its own by them."""

    def create_completion(self, prompt: Any, suffix: str | None = None, *args: Any, **options: Any) -> Any:
        """As `Llama.create_completion`; a text gets the special tokens that llama.cpp puts around it, where `Llama`
        appends the separator of every tokenizer that has one. Raises ContextError for a prompt that leaves no room for
        an answer."""
        tokens = self.tokenize(prompt.encode(), add_bos=True, special=True) if isinstance(prompt, str) else prompt
        if len(tokens) >= self.n_ctx():
            raise ContextError(len(tokens) + 1, self.n_ctx(), self.model_path)
        plain = not args and not options.get("echo") and options.get("logprobs") is None
        if plain and suffix is None and prompt:
            prompt = tokens
        return super().create_completion(prompt, suffix, *args, **options)

    def n_ctx(self) -> int:
        """The context as asked for: `Llama` has arrays of that length, llama.cpp rounds it up to a multiple of 256."""
        return int(self.context_params.n_ctx)

    def eval(self, tokens: Sequence[int]) -> None:
        """As `Llama.eval`. Raises ContextError for tokens that do not fit behind those before them: the last one of an
        answer may, for `Llama` does not count where it waits for the rest of a character."""
        if (count := self.n_tokens + len(tokens)) > self.n_ctx():
            raise ContextError(count, self.n_ctx(), self.model_path)
        super().eval(tokens)

    def _handler(self, name: str) -> Any:
        """What llama-cpp-python calls for `create_chat_completion` with this template of the file."""
        chosen = None if name == DEFAULT else name

        def formatter(*, messages: Any, tools: Any = None, **others: Any) -> ChatFormatterResponse:
            others = {key: value for key, value in others.items() if value is not None}
            prompt = self._templates.prompt(messages, tools, chosen, **others)
            if not prompt:
                raise GGUFError(
                    f"the chat template of {self.model_path} makes nothing of the conversation: use --plain"
                )
            return ChatFormatterResponse(prompt=prompt, added_special=True)  # it ends where the file's tokens end it

        return chat_formatter_to_chat_completion_handler(formatter)

    @property
    def adapters(self) -> dict[str, Path]:
        """name → file of those loaded."""
        return dict(self._adapters.files)

    @property
    def active_adapters(self) -> dict[str, float]:
        """name → scale of those that are on."""
        return dict(self._adapters.active)

    def add_adapter(self, name: str, file: str | Path) -> None:
        """Loads one more, off. Raises GGUFError, AdapterMismatchError."""
        self._adapters.add(name, file)

    def set_adapters(self, adapters: str | Mapping[str, float] | None = None) -> None:
        """Makes one (by its name, in full), several (name → scale), or none the active ones. Raises
        UnknownAdapterError, GGUFError for a scale that is no finite number."""
        wanted = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters or {})
        if self._adapters.set(wanted):
            self.reset()
            self._ctx.kv_cache_clear()

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """As `Llama.set_cache`; states are kept apart by the adapters that were active."""
        super().set_cache(None if cache is None else _AdapterCache(cache, self._adapters))

    def save_state(self) -> LlamaState:
        """As `Llama.save_state`; the state remembers the active adapters."""
        state = super().save_state()
        vars(state)["adapters"] = self._adapters.signature
        return state

    def load_state(self, state: LlamaState) -> None:
        """As `Llama.load_state`. Raises GGUFError for a state of other adapters than the active ones."""
        if getattr(state, "adapters", ()) != self._adapters.signature:
            raise GGUFError("the state was saved under other adapters: make those active with set_adapters first")
        super().load_state(state)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "adapters": self.adapters, "active": self.active_adapters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        active = state.pop("active")
        super().__setstate__(state)
        self.set_adapters(active)


class _Tokenizer(LlamaTokenizer):
    """llama-cpp-python's own holds 32 bytes of a token, and drops a longer one, such as a long run of spaces."""

    def detokenize(self, tokens: Any, prev_tokens: Any = None, special: bool = False) -> bytes:
        text = b"".join(token_piece(self._model.vocab, token, special) for token in tokens)
        begins = len(tokens) > 0 and tokens[0] == self._model.token_bos()
        return text[1:] if begins and text[:1] == b" " else text  # as in `LlamaTokenizer`


class _AdapterCache(BaseLlamaCache):
    """A cache of llama-cpp-python under whose keys the adapters stand before the tokens."""

    def __init__(self, cache: BaseLlamaCache, adapters: Adapters):
        super().__init__(cache.capacity_bytes)
        self._cache, self._adapters = cache, adapters

    @property
    def cache_size(self) -> int:
        return self._cache.cache_size

    def _key(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return (*self._adapters.signature, *tokens)

    def __getitem__(self, tokens: Sequence[int]) -> LlamaState:
        return self._cache[self._key(tokens)]

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return self._key(tokens) in self._cache

    def __setitem__(self, tokens: Sequence[int], state: LlamaState) -> None:
        self._cache[self._key(tokens)] = state
