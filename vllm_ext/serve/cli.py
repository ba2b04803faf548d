"""`sqft serve`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sqft_plugins.cli.common import emit, examples, json_option
from sqft_plugins.settings.checked import MODEL_NAME, THERE
from vllm_ext.serve.server import DEFAULT_SLOTS, Server

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class BytesType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A number of bytes, as 500000000, 512MiB or 2GB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        number = text.rstrip("BGIKMbgikm")
        with contextlib.suppress(KeyError, ValueError, OverflowError):
            size = int(float(number) * UNITS[text[len(number) :].upper()])
            if size >= 0:
                return size
        self.fail(f"{value} is no number of bytes: write such as 512MiB or 2GB")


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
@click.option("--adapters", type=THERE, metavar="DIR", help="Serve the adapters that are subfolders of DIR.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: reachable from other machines.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, metavar="N")
@click.option(
    "--max-loras", "slots", type=click.IntRange(1), default=DEFAULT_SLOTS, show_default=True, metavar="N",
    help="Adapters in one batch.",
)  # fmt: skip
@click.option(
    "--plane-cache-bytes", "plane_bytes", type=BytesType(), metavar="BYTES",
    help="Memory for value planes (of quantization-aware adapters), per worker. Default: 1GiB.",
)  # fmt: skip
@click.option(
    "--plane-dir", type=click.Path(), metavar="DIR",
    help="Keep built planes here. Default: a temporary folder that goes with the server.",
)  # fmt: skip
@click.option("--log", type=click.Path(), metavar="FILE", help="The server's log, appended to. Default: stderr.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds to wait until the server is healthy.")
@click.option("--dry-run", is_flag=True, help="Print what would be started, and end.")
@json_option
@click.argument("passed", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM ARGUMENTS]")
def serve_command(
    model: str, adapters: str | None, host: str, port: int, slots: int, plane_bytes: int | None,
    plane_dir: str | None, log: str | None, timeout: float, dry_run: bool, as_json: bool, passed: tuple[str, ...],
) -> None:  # fmt: skip
    """Serve MODEL with vLLM, over OpenAI's HTTP interface.

    An adapter in DIR/math is asked for as "math", "math@max", "math@r16" and so on. What stands behind -- goes to
    vLLM and wins over what is set here. The exit code is the server's.
    """
    from sqft_plugins.checkpoint.hub import local_folder

    folder = local_folder(model)
    from vllm_ext.serve.command import build

    server = build(
        folder, Path(adapters) if adapters else None, host, port, slots, plane_bytes,
        Path(plane_dir) if plane_dir else None, passed, os.environ,
    )  # fmt: skip
    if dry_run:
        emit(as_json, server.as_dict(), lambda: _show_plan(server))
        return
    # this process has torch and PEFT in memory; the one that watches the server for days needs neither
    what = {"server": asdict(server), "log": log, "timeout": timeout, "as_json": as_json}
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "vllm_ext.serve.watch", json.dumps(what)])


def _show_plan(server: Server) -> None:
    for note in server.notes:
        click.echo(f"# {note}")
    click.echo(server.shell())
