"""`sqft backend-path`."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option
from sqft_plugins.errors import SQFTError


@click.command(
    "backend-path",
    epilog=examples(
        "GGML_BACKEND_PATH=$(sqft backend-path) llama-server -m math-int4.gguf",
        "sqft backend-path --json",
    ),
)
@json_option
def backend_path_command(as_json: bool) -> None:
    """Print where the library is that puts our sparse kernels into llama.cpp.

    llama.cpp's own programs load it where GGML_BACKEND_PATH names it; llama-cpp-python does not look at the variable,
    there `gguf_ext.enable()` does it. The library says in one line where it cannot serve the
    llama.cpp that loads it, such as one of another version; that one then computes as always.
    """
    from gguf_ext.backend import load

    if not load.FILE.is_file():
        raise SQFTError(f"{load.FILE} was not built: build it with `{load.BUILD}`")
    emit(as_json, {"path": str(load.FILE)}, str(load.FILE))
