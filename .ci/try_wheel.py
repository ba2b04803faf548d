"""Installs a wheel (or an sdist) into empty environments, one for each extra, and uses what the extra promises.

    python .ci/try_wheel.py dist/*.whl --extra none --extra peft --installer uv --python python3.13
    python .ci/try_wheel.py dist/*.tar.gz --extra peft --no-compiler
    python .ci/try_wheel.py dist/*.whl --extra demo -- --find-links FOLDER 'transformers==5.24.0'

Words behind `--` go to the installer: other packages, pins, where to find wheels. Nothing of this clone is on the path
of an environment but README.md, whose PEFT example the extra `demo` runs. Each environment takes some GB while it
lives (torch), and is removed. Exit status 1 where anything fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

CORE = """
import pathlib, torch, sqft_plugins, transformers
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained("model")
prune_folder("model", "pruned", method="magnitude", sparsity=0.5)
quantize_folder("pruned", "int4", group_size=32)
assert ModelFolder("int4").grid is not None
"""
PEFT = """
import torch, transformers
from peft import get_peft_model
from peft_ext import SQFTConfig
from sqft_plugins.mask import nonzero_mask
model = transformers.AutoModelForCausalLM.from_pretrained("pruned")
model = get_peft_model(model, SQFTConfig(r=8, rank_choices=[8, 4], target_modules=["q_proj", "v_proj"]))
loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
loss.backward()
with torch.no_grad():
    for name, weight in model.named_parameters():
        weight.add_(0.1 * torch.randn_like(weight)) if "lora_" in name else None
merged = model.merge_and_unload()
before = transformers.AutoModelForCausalLM.from_pretrained("pruned")
for layer, was in zip(merged.model.layers, before.model.layers):
    now, then = layer.self_attn.q_proj.weight, was.self_attn.q_proj.weight
    assert not torch.equal(now, then) and not (now[then == 0] != 0).any()
"""
IMPORTS = {
    "none": "import sqft_plugins, vllm_ext.plugin, gguf_ext.plugin",
    "peft": "import peft_ext, peft_ext.plugin",
    "gguf": "import gguf_ext, gguf_ext.plugin, gguf, llama_cpp; from gguf_ext import load",
    "vllm": "import vllm_ext, vllm_ext.register, vllm",
    "search": "import optuna, matplotlib, sqft_plugins.search",
    "eval": "import lm_eval, datasets, matplotlib, sqft_plugins.evaluate",
    "data": "import datasets",
    "plot": "import matplotlib",
    "tensorboard": "import tensorboard",
    "demo": "import peft_ext, gguf_ext, sqft_plugins.demo",
}
"""Extra → what must be importable with it alone."""
COMMANDS = (["--help"], ["plugins"], ["doctor"])
TO_GGUF = (
    ["quantize", "gemma-50", "--out", "gemma-int4"],
    ["export", "gguf", "gemma-int4", "--out", "gemma.gguf"],
    ["verify", "gemma-int4", "gemma.gguf"],
)
"""What follows the README's example in the same folder."""


class Environment:
    """An empty one with `installed` in it. Every command runs in its folder, with no other packages on the path."""

    def __init__(self, folder: Path, python: str, installer: str, compiler: bool):
        self.folder, self.installer = folder, installer
        self.bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        self.python = str(self.bin / "python")
        self.variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX")}
        if not compiler:
            self.variables["CXX"] = "false"
        self.run(python, "-m", "venv", *(["--without-pip"] if installer == "uv" else []), str(folder / "env"))

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != code:
            raise RuntimeError(f"{' '.join(command)[:300]} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def install(self, *words: str) -> str:
        if self.installer == "uv":
            return self.run("uv", "pip", "install", "--python", self.python, *words)
        return self.run(self.python, "-m", "pip", "install", *words)

    def check(self) -> str:
        """That what is installed agrees about its requirements."""
        if self.installer == "uv":
            return self.run("uv", "pip", "check", "--python", self.python)
        return self.run(self.python, "-m", "pip", "check")


def readme_example() -> str:
    section = README.read_text(encoding="utf-8").partition("## I use PEFT")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]


def try_extra(environment: Environment, file: Path, extra: str, words: list[str], compiler: bool) -> None:
    """Raises RuntimeError, with the output, for what fails."""
    environment.install(f"{file}[{extra}]" if extra != "none" else str(file), *words)
    say(environment.check().strip().splitlines()[-1])

    python = environment.python
    for statement in {IMPORTS["none"], IMPORTS[extra]}:
        environment.run(python, "-c", statement)
    for command in COMMANDS:
        shown = environment.run(str(environment.bin / "sqft"), *command)
        if command == ["doctor"]:
            print(shown)
    kernels = environment.run(python, "-m", "sqft_plugins.kernels", code=0 if compiler else 1)
    print(kernels)

    environment.run(python, "-c", CORE)
    if extra in ("peft", "demo"):
        environment.run(python, "-c", PEFT)
    if extra == "gguf":
        environment.run(str(environment.bin / "sqft"), "export", "gguf", "--help")
    if extra == "demo":
        shown = environment.run(python, "-c", readme_example())
        say(shown.strip().splitlines()[-1])
        if "50.0% of the weights are 0" not in shown:
            raise RuntimeError(f"the README's example says:\n{shown[-2000:]}")
        for command in TO_GGUF:
            say(environment.run(str(environment.bin / "sqft"), *command).strip().splitlines()[-1])


def say(text: str) -> None:
    print(f"try_wheel: {text}", flush=True)


def main() -> int:
    words = sys.argv[1:]
    passed = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the wheel or the sdist")
    parser.add_argument("--extra", action="append", choices=IMPORTS, help="none: the core alone; repeatable")
    parser.add_argument("--installer", default="pip", choices=("pip", "uv"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--no-compiler", action="store_true", help="of an sdist: with a C++ compiler that fails")
    given = parser.parse_args(words[: len(words) - len(passed) - 1] if "--" in words else words)

    failed = []
    for extra in given.extra or ["none"]:
        title = f"{given.file.name}[{extra}], {given.installer}, {given.python}"
        say(title)
        begin, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="sqft-wheel-"))
        try:
            environment = Environment(folder, given.python, given.installer, not given.no_compiler)
            try_extra(environment, given.file.resolve(), extra, passed, not given.no_compiler)
            say(f"{title}: well, {time.monotonic() - begin:.0f} s")
        except RuntimeError as error:
            say(f"{title}: FAILED: {error}")
            failed.append(title)
        finally:
            shutil.rmtree(folder)
    for title in failed:
        say(f"FAILED: {title}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
