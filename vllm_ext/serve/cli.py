"""`sqft serve`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from pydantic import BeforeValidator

from sqft_plugins.cli.common import emit, examples, json_option
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.checked import BYTES, MODEL_NAME
from sqft_plugins.settings.click_options import options
from vllm_ext.serve import DEFAULT_SLOTS

if TYPE_CHECKING:
    from vllm_ext.serve.server import Server

Folder = Annotated[Path | None, BeforeValidator(lambda path: path or None)]
"""Empty, as an unset variable of the shell is, it is none: `Path("")` is the working directory."""


class ServeSettings(Settings):
    adapters: Folder = option(None, "Serve the adapters that are subfolders of DIR.", "file", metavar="DIR")
    host: str = option("127.0.0.1", "0.0.0.0: reachable from other machines.")
    port: int = option(8000, "", ge=1, le=65535, metavar="N")
    slots: int = option(DEFAULT_SLOTS, "Adapters in one batch.", ge=1, name="--max-loras", metavar="N")
    plane_bytes: int | None = option(
        None,
        "Memory for value planes (of quantization-aware adapters), per worker. Default: 1GiB.",
        BYTES,
        name="--plane-cache-bytes",
        metavar="BYTES",
    )
    plane_dir: Folder = option(
        None,
        "Keep built planes here. Default: a temporary folder that goes with the server.",
        "place",
        metavar="DIR",
    )
    log: str | None = option(None, "The server's log, appended to. Default: stderr.", "place", metavar="FILE")
    timeout: float = option(900.0, "Seconds to wait until the server is healthy.", allow_inf_nan=True)
    dry_run: bool = option(False, "Print what would be started, and end.")


@click.command(
    "serve",
    epilog=examples(
        "sqft serve models/gemma-50-int4",
        "sqft serve models/gemma-50-int4 --adapters adapters --port 8080",
        "sqft serve models/gemma-50-int4 --adapters adapters --dry-run",
        "sqft serve models/gemma-50-int4 --adapters adapters --log server.log -- --max-model-len 2048",
    ),
)
@click.argument("model", type=MODEL_NAME)
@options(settings=ServeSettings)
@json_option
@click.argument("passed", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM ARGUMENTS]")
def serve_command(model: str, settings: ServeSettings, as_json: bool, passed: tuple[str, ...]) -> None:
    """Serve MODEL with vLLM, over OpenAI's HTTP interface.

    An adapter in DIR/math is asked for as "math", "math@max", "math@r16" and so on, at half its strength as
    "math@r16*0.5". What stands behind -- goes to vLLM and wins over what is set here. The exit code is the server's.
    """
    from sqft_plugins.checkpoint.hub import local_folder

    folder = local_folder(model)
    from vllm_ext.serve.command import build

    start = settings.model_dump(exclude={"log", "timeout", "dry_run"})
    server = build(folder, passed=passed, environment=os.environ, **start)
    if settings.dry_run:
        emit(as_json, server.as_dict(), lambda: _show_plan(server))
        return
    # this process has torch and PEFT in memory; the one that watches the server for days needs neither
    what = {"server": asdict(server), "log": settings.log, "timeout": settings.timeout, "as_json": as_json}
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "vllm_ext.serve.watch", json.dumps(what)])


def _show_plan(server: Server) -> None:
    for note in server.notes:
        click.echo(f"# {note}")
    click.echo(server.shell())
