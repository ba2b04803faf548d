"""The world that the documentation speaks of, with tiny random models: `models/gemma`, `adapters/math`, ..."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from sqft_plugins.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "sqft_plugins"))  # importlib mode keeps test folders off the path
CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MAKE = """
    prune models/gemma --sparsity 0.5 --sequences 2 --length 32 --out models/gemma-50
    quantize models/gemma-50 --method gptq --sequences 2 --length 32 --out models/gemma-50-int4
    train models/gemma-50 --data train.jsonl --rank-choices 32,24,16 --steps 4 --out adapters/math
    train models/gemma-50 --data train.jsonl --rank-choices 32,24,16 --steps 2 --quantization-aware
          --grid models/gemma-50-int4 --out adapters/math-qa
    merge models/gemma-50 adapters/math --out models/gemma-50-math
    quantize models/gemma-50-math --out models/gemma-50-math-int4
    train models/gemma-50 --data train.jsonl --rank 8 --dense --steps 2 --out adapters/dense
    export gguf models/gemma-50-math-int4 --out base.gguf
    quantize models/gemma --grid q4_k_m --sequences 2 --length 32 --out gemma-Q4_K_M.gguf
    export gguf-lora adapters/dense --out math.gguf
    export gguf-lora adapters/dense --out code.gguf
"""


def run_sqft(arguments: list[str]) -> int:
    """`sqft ARGUMENTS` in this process → its exit code."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def without_output(arguments: list[str]) -> list[str]:
    """The arguments, after what their --out names was removed where a block before has written it."""
    for name, value in itertools.pairwise(arguments):
        if name == "--out" and Path(value).exists():
            shutil.rmtree(value) if Path(value).is_dir() else Path(value).unlink()
    return arguments


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory, tiny_model, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("world")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tiny_model("llama", max_position_embeddings=2048).save_pretrained(folder / "models/gemma")
    tokenizer = tiny_tokenizer("byte-level")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "models/gemma")

    teams = ["hardware", "billing", "accounts", "network"]
    rows = [{"prompt": f"Ticket {i}: no {teams[i % 4]}.\nTeam:", "completion": f" {teams[i % 4]}"} for i in range(48)]
    chats = [
        {"messages": [{"role": "user", "content": f"Team {i}?"}, {"role": "assistant", "content": teams[i % 4]}]}
        for i in range(24)
    ]
    options = [
        {"instruction": f"Question {i}?\n\nAnswer1: one Answer2: two", "answer": f"answer{1 + i % 2}"} for i in range(6)
    ]
    for name, lines in {"train": rows, "test": rows[:12], "heldout": rows, "chat": chats}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for task in ("arc_easy", "openbookqa"):
        (folder / "data" / task).mkdir(parents=True)
        for split in ("train", "test"):
            (folder / "data" / task / f"{split}.json").write_text(json.dumps(options))
    shutil.copytree(ROOT / "examples", folder / "examples")
    for recipe in (folder / "examples").glob("*.yaml"):  # the same recipes, over the tiny model and in a few steps
        text = recipe.read_text().replace("gemma-3-270m", str(folder / "models/gemma"))
        recipe.write_text(re.sub("steps: [0-9]+", "steps: 2", text))

    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in MAKE.replace("\n          ", " ").strip().split("\n"):
            assert run_sqft(command.split()) == 0, command
    finally:
        os.chdir(before)
    from helpers_foreign import write_foreign

    write_foreign(folder / "models/gemma", folder / "models/gemma-awq", "awq")
    return folder


@pytest.fixture
def world(made_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(made_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"
