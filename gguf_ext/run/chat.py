"""A conversation with a GGUF file: what `sqft chat` does, without its terminal.

A file with a chat template is talked to in turns; any other completes each text on its own, as a base model does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_ext.errors import ContextError, GGUFError
from gguf_ext.tokenizer.keys import TEMPLATE
from sqft_plugins.errors import nearest

if TYPE_CHECKING:
    from gguf_ext.run.llama import AdapterLlama

HELP = {
    "/adapter [NAME[:SCALE] ... | none]": "show the adapters; make these the active ones; switch all off",
    "/scale NUMBER": "the scale of the active adapters",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "end (so does ctrl-D); ctrl-C stops an answer",
}


class Chat:
    """llm: a loaded file. plain: completes texts although there is a template. scales: name → scale of every adapter,
    also of those that are off. statistics: of the last answer, see `ask`."""

    def __init__(self, llm: AdapterLlama, *, max_tokens: int = 256, temperature: float = 0.0, plain: bool = False):
        self.llm, self.max_tokens, self.temperature = llm, max_tokens, temperature
        self.templated = TEMPLATE in llm.metadata and not plain
        self.scales = dict.fromkeys(llm.adapters, 1.0)
        self.statistics: dict[str, Any] = {}
        self._messages: list[Any] = []

    def ask(self, prompt: str) -> Iterator[str]:
        """The answer, in pieces as they come; an answer that is not read to its end stays in the conversation as far as
        it was read. Then `statistics` holds seconds (of the whole) and finish_reason ("stop" at an end token,
        "length" at max_tokens or the end of the context, "interrupted"). Raises GGUFError for a conversation longer
        than the context, RuntimeFailedError for a chat template that fails."""
        if not prompt:
            raise GGUFError("the prompt is empty: give one")
        start, text, reason = time.monotonic(), "", "interrupted"
        said = {"role": "user", "content": prompt}
        try:
            for part, ended in self._stream(prompt, [*self._messages, said]):
                text += part
                reason = ended or reason
                if part:
                    yield part
        finally:
            if self.templated and (text or reason != "interrupted"):
                self._messages += [said, {"role": "assistant", "content": text}]
            self.statistics = {"seconds": round(time.monotonic() - start, 3), "finish_reason": reason}

    def switch(self, scales: Mapping[str, float]) -> None:
        """Makes these adapters (name → scale) the active ones. Raises UnknownAdapterError, GGUFError."""
        self.llm.set_adapters(scales)
        self.scales.update({name: scale for name, scale in scales.items() if scale})

    def reset(self) -> None:
        """Forgets the conversation."""
        self._messages.clear()

    def command(self, line: str) -> str:
        """Does what a line that begins with / asks for → what to show. Raises GGUFError for what it does not know."""
        name, *words = line.split()
        if name == "/help":
            return "\n".join(f"{what:36} {how}" for what, how in HELP.items())
        if name == "/reset" and not words:
            self.reset()
            return "the conversation is forgotten"

        if name == "/adapter":
            self._adapter(words)
        elif name == "/scale" and len(words) == 1:
            if not self.llm.active_adapters:
                raise GGUFError("/scale needs an active adapter: make one active with /adapter NAME")
            self.switch(dict.fromkeys(self.llm.active_adapters, _number(words[0], "/scale")))
        elif name == "/scale":
            raise GGUFError("/scale takes one number: write such as /scale 0.5")
        else:
            raise GGUFError(f"command {line!r} is unknown: {nearest(name, [key.split()[0] for key in HELP])}")

        return self.adapters()

    def adapters(self) -> str:
        """One line: every adapter, and the scale of those that are on."""
        active = self.llm.active_adapters
        states = [f"{name} {f'on ({active[name]:g})' if name in active else 'off'}" for name in self.llm.adapters]
        return "adapters: " + (", ".join(states) or "none, give some with --adapter NAME=FILE")

    # --- inside ---

    def _adapter(self, words: list[str]) -> None:
        if not words:
            return
        if words == ["none"] and "none" not in self.llm.adapters:
            self.switch({})
            return
        wanted = {}
        for word in words:
            name, colon, scale = word.rpartition(":")
            if not colon or word in self.llm.adapters:
                name, scale = word, str(self.scales.get(word, 1.0))
            wanted[name] = _number(scale, "/adapter")
        self.switch(wanted)

    def _stream(self, prompt: str, messages: list[Any]) -> Iterator[tuple[str, str | None]]:
        """(piece of text, the reason for the end or None). An answer that fills the context ends there."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "stream": True}
        chunks: Any
        try:
            if self.templated:
                chunks = self.llm.create_chat_completion(messages, **options)
            else:
                chunks = self.llm.create_completion(prompt, **options)
        except ContextError as error:
            hint = "use /reset" if self.templated else "shorten it"
            raise GGUFError(
                f"the conversation of {error.tokens} tokens does not fit context={self.llm.n_ctx()}: {hint}, or give a "
                "larger --context"
            ) from error

        try:
            for chunk in chunks:
                choice = chunk["choices"][0]
                text = choice["delta"].get("content") if self.templated else choice["text"]
                yield text or "", choice["finish_reason"]
        except ContextError:
            yield "", "length"


def parse_adapter(text: str) -> tuple[str, Path, float]:
    """NAME=FILE[:SCALE] → name, file, scale (1 where none is given). Raises GGUFError."""
    name, equals, file = text.partition("=")
    if not name or not equals or not file:
        raise GGUFError(f"--adapter {text!r} is no NAME=FILE: write such as math=math.gguf or math=math.gguf:0.5")
    place, colon, tail = file.rpartition(":")
    try:
        scale = float(tail)
    except ValueError:
        return name, Path(file), 1.0
    if not colon or not place or Path(file).is_file():
        return name, Path(file), 1.0
    return name, Path(place), scale


def _number(text: str, argument: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GGUFError(f"{argument} {text!r} is no number: write such as 0.5") from None
