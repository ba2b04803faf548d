"""A first load in a process of its own, for architectures of which `loadable` has no rules.

llama.cpp has over a hundred of them, and what one of their files lacks can end the process (SIGFPE, SIGABRT). So a file
of an architecture that this project neither writes nor has compared is loaded there first, with one token decoded.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from gguf_ext.errors import UnloadableFileError
from gguf_ext.reader import GGUFFile
from sqft_plugins.progress import say

SCRIPT = """
import sys
import llama_cpp as c

c.llama_backend_init()
settings = c.llama_model_default_params()
settings.n_gpu_layers = 0
model = c.llama_model_load_from_file(sys.argv[1].encode("utf-8", "surrogateescape"), settings)
if model:
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 64
    context = c.llama_init_from_model(model, settings)
    if context:
        c.llama_decode(context, c.llama_batch_get_one((c.llama_token * 1)(0), 1))
"""
"""What llama.cpp refuses by itself, the caller meets again, with its reason."""


def check_survives(file: GGUFFile) -> None:
    """Raises UnloadableFileError where a process ends of the file `file`. Takes one load and one token."""
    name = file.metadata.get("general.architecture")
    say(f"{file.path}: architecture {name} was not compared with transformers here; loading it once in a process apart")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file.path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
        raise UnloadableFileError(
            f"llama.cpp cannot load {file.path}: its architecture {name}, with these values, ends the process ({how}); "
            "take another file, or another runtime"
        )
