"""`sqft chat`: a first look at a GGUF file in the terminal."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Self

import click
from pydantic import model_validator

from gguf_ext.run.chat import Chat, parse_adapter
from gguf_ext.settings import GGUF_FILE
from sqft_plugins.cli.common import emit, examples, json_option
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import cores
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.click_options import options


class ChatSettings(Settings):
    adapters: list[str] = option(
        list,
        "A LoRA file, active with this scale (1 where none is given, 0 for off). Repeatable.",
        name="--adapter",
        metavar="NAME=FILE[:SCALE]",
    )
    prompt: str | None = option(
        None, "Answer this and end. Default: a conversation, or a prompt on stdin.", metavar="TEXT"
    )
    max_tokens: int = option(256, "Of an answer, at most.", ge=1)
    temperature: float = option(0.0, "0: always the likeliest token.", ge=0)
    plain: bool = option(False, "Complete the text, though the file has a chat template.")
    context: int | None = option(None, "In tokens. [default: 4096, or the model's]", ge=1)
    threads: int | None = option(None, "[default: all]", ge=1)
    sparse: bool = option(
        True, "Multiply sparse INT4 weights with our kernels, where they are faster than llama.cpp's."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.parsed) < len(self.adapters):
            raise SQFTError("two --adapter have the same name: name them apart")
        return self

    @property
    def parsed(self) -> dict[str, tuple[Path, float]]:
        """Name → (file, scale) of the adapters."""
        return {name: (path, scale) for name, path, scale in map(parse_adapter, self.adapters)}


@click.command(
    "chat",
    epilog=examples(
        "sqft chat model.gguf",
        "sqft chat base.gguf --adapter math=math.gguf --adapter code=code.gguf:0",
        "echo 'The capital of France is' | sqft chat model.gguf --max-tokens 16 --json",
    ),
)
@click.argument("file", type=GGUF_FILE, metavar="FILE.gguf")
@options(settings=ChatSettings)
@json_option
def chat_command(file: str, settings: ChatSettings, as_json: bool) -> None:
    """Talk to FILE.gguf.

    Through the chat template of the file, or, where it has none, as plain completion of each text. /help lists the
    commands. Where stdin is no terminal, all of it is one prompt.
    """
    from gguf_ext.run.llama import load

    prompt = settings.prompt
    interactive = prompt is None and sys.stdin.isatty()
    if interactive and as_json:
        raise click.UsageError("--json needs one question: add --prompt, or give the prompt on stdin")
    if prompt is None and not interactive:
        try:
            prompt = sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"the prompt on stdin is not UTF-8 text ({error}): convert it") from error
    if not interactive and not prompt:
        raise click.UsageError("the prompt is empty: write it behind --prompt or to stdin")
    given = settings.parsed
    threads = settings.threads or cores()
    files = {name: path for name, (path, _) in given.items()}
    llm = load(file, files, n_ctx=settings.context, sparse=settings.sparse, n_threads=threads, n_threads_batch=threads)
    try:
        chat = Chat(llm, **settings.model_dump(include={"max_tokens", "temperature", "plain"}))
        chat.switch({name: scale for name, (_, scale) in given.items()})
        if prompt is None:
            _converse(chat)
        else:
            _answer_once(chat, prompt, as_json)
    finally:
        llm.close()


def _answer_once(chat: Chat, prompt: str, as_json: bool) -> None:
    if as_json:
        answer = "".join(chat.ask(prompt))
        active = chat.llm.active_adapters
        emit(True, {"prompt": prompt, "answer": answer, "adapters": active, **chat.statistics})
        return
    for piece in chat.ask(prompt):
        click.echo(piece, nl=False)
    click.echo()


def _converse(chat: Chat) -> None:
    """Until /quit, ctrl-D, or ctrl-C at the prompt."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() edits lines and remembers them)
    how = "chat template" if chat.templated else "no chat template: each text is completed on its own"
    click.echo(f"{chat.llm.model_path}: {how}. /help lists the commands.", err=True)
    if chat.llm.adapters:
        click.echo(chat.adapters(), err=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                click.echo(chat.command(line), err=True)
            elif line:
                _show(chat, line)
        except SQFTError as error:
            click.echo(f"error: {error}", err=True)


def _show(chat: Chat, prompt: str) -> None:
    """Prints the answer as it comes; ctrl-C stops it."""
    answer: Any = chat.ask(prompt)
    try:
        for piece in answer:
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        answer.close()
    click.echo()
