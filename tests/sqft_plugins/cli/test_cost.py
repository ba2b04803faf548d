"""What an answer at once imports: help pages, `sqft plugins`, `sqft doctor` and refusals bring no heavy library.

Modules are counted, not seconds. Run one: `pytest tests/sqft_plugins/cli/test_cost.py -k doctor`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

from sqft_plugins.cli import VERBS

pytestmark = pytest.mark.once
OURS = {"sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext"}
LIGHT = (
    "annotated_types",
    "click",
    "filelock",
    "packaging.requirements",
    "pluggy",
    "pydantic",
    "rich.progress",
    "rich.table",
    "ruamel.yaml",
    "setuptools.command.bdist_wheel",
    "setuptools.command.build_ext",  # both of kernels/build.py, which knows the compiler
    "yaml",
)
"""The libraries that an answer may import; whatever else they bring is theirs."""
MOST_OF_OURS = 93
"""Modules of our packages: 21 files of verbs, the plug-ins with their commands and checks, and the settings of each
verb. A chain of imports into the packages that compute brings a hundred and more."""

COUNT = """
import json, sys
import {imports}
if {run}:
    from sqft_plugins.cli import main
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    print()
    print(json.dumps([code, sorted(sys.modules)]))
else:
    print(json.dumps([0, sorted(sys.modules)]))
"""


def child(*arguments: str, imports: str = "sys", run: bool = True) -> tuple[int, set[str]]:
    """Exit code and modules of a process that runs `sqft` with the arguments, or only imports."""
    code = COUNT.format(imports=imports, run=run)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


def packages(modules: set[str]) -> set[str]:
    """The packages that modules belong to, without those of Python and ours."""
    roots = {name.partition(".")[0] for name in modules}
    return {root for root in roots if not root.startswith("_")} - OURS - set(sys.stdlib_module_names)


@cache
def light() -> set[str]:
    return packages(child(imports=", ".join(LIGHT), run=False)[1])


def check(modules: set[str]) -> None:
    assert packages(modules) - light() == set()
    ours = {name for name in modules if name.partition(".")[0] in OURS}
    assert len(ours) <= MOST_OF_OURS, sorted(ours)


PAGES = [
    ["--help"],
    ["--version"],
    *([verb, "--help"] for verb in [*VERBS, "serve", "verify", "chat", "patch"]),
    *(["export", name, "--help"] for name in ("gguf", "plane", "gguf-lora", "patch")),
    ["plugins"],
    ["doctor"],
]


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_an_answer_imports_nothing_heavy(arguments):
    code, modules = child(*arguments)
    assert code in (0, 1)  # doctor's, where something is wrong here
    check(modules)


REFUSED = [
    "foo",
    "prune --foo",
    "prune missing/model/x --sparsity 0.5 --out o",
    "prune empty --sparsity 0.5 --out o",
    "prune empty --sparsity 1.5 --out o",
    "prune empty --sparsity 0.5 --method wand --out o",
    "recover missing/model/x --dense empty --out o",
    "recover empty --dense missing/model/x --out o",
    "recover empty --out o",
    "recover empty --dense empty --sequences 0 --out o",
    "quantize empty --out o",
    "quantize empty --method gpt --out o",
    "train missing --data data.jsonl --out o",
    "train empty --data missing.jsonl --out o",
    "train empty --data data.jsonl --rank 0 --out o",
    "train empty --data data.jsonl --tuner lorra --out o",
    "search empty empty --data missing.jsonl --out o",
    "search empty empty --data data.jsonl --method tp --out o",
    "search empty empty --task word-problem --out o",
    "extract missing --out o",
    "merge missing missing --out o",
    "compact missing --out o",
    "export gguff",
    "export gguf missing --out o.gguf",
    "export gguf-lora missing --out o.gguf",
    "quantize empty --grid q4_q --out o.gguf",
    "quantize empty --grid q4_0 --out o",
    "quantize empty --grid q4_0 --group-size 64 --out o.gguf",
    "export plane missing missing",
    "export patch missing.gguf missing --out o.patch",
    "patch missing.gguf missing.patch --out o.gguf",
    "verify missing missing.gguf",
    "chat missing.gguf",
    "serve empty --adapters missing",
    "eval",
    "eval missing",
    "eval empty --task no-such-task",
    "eval empty --dtype foo",
    "inspect missing",
    "inspect empty --pattern 3",
    "report missing",
    "plan missing/model/x",
    "plan empty --method foo",
    "plan empty --sparsity 1.5",
    "run missing.yaml",
    "demo --model missing",
    "demo --steps 0",
]


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_argument_is_refused_before_anything_heavy_is_imported(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    code, modules = child(*line.split())
    assert code == 2
    check(modules - {name for name in modules if name.partition(".")[0] == "safetensors"})  # its headers, without torch


WRONG_BESIDE = [
    "prune base --sparsity 0.5 --out run",
    "prune base --sparsity 0.5 --out train.jsonl --overwrite",
    "prune base --sparsity 0.5 --calibration missing.txt --out o",
    "prune base --sparsity 0.5 --calibration some/missing.txt --out o",
    "recover run/prune --dense base --out run",
    "recover run/prune --dense base --calibration missing.txt --out o",
    "quantize base --out run",
    "quantize base --group-size 0 --out o",
    "quantize base --method gptq --calibration missing --out o",
    "train run/prune --data train.jsonl --out run",
    "train run/prune --data train.jsonl --text missing.txt --out o",
    "train run/prune --data train.jsonl --grid int4 --out o",
    "train run/prune --data train.jsonl --dropout 0.1 --quantization-aware --out o",
    "train run/prune --data train.jsonl --grid int4 --dense --out o",
    "train run/prune --data train.jsonl --eval-every 5 --out o",
    "train run/prune --data train.jsonl --keep best --out o",
    "train run/prune --data train.jsonl --tensorboard train.jsonl --out o",
    "search run/prune run/train --data test.jsonl --out run",
    "search run/prune run/train --data test.jsonl --start train.jsonl --out o",
    "search run/prune run/train --data test.jsonl --save max --out o",
    "search run/prune run/train --data test.jsonl --against latency --out o",
    "search run/prune run/train --data test.jsonl --grid missing --out o",
    "search run/prune run/train --data test.jsonl --worker",
    "extract run/train --out run",
    "extract run/train --rank missing.json --out o",
    "merge run/prune run/train --out run",
    "merge run/prune run/train --grid missing --out o",
    "compact int4 --out run",
    "export gguf base --out run",
    "export gguf base --out lora.gguf",
    "export gguf base --out o.gguf --float-type q4_0",
    "export gguf base --out o.gguf --split-max-size 3X",
    "export gguf base --out o.gguf --template-gguf text.txt",
    "export gguf base --out o-00001-of-00002.gguf --split-max-size 1G",
    "export gguf-lora extracted-dense --out lora.gguf",
    "export gguf-lora extracted-dense --base missing --out o.gguf",
    "export plane int4 adapter-qa --base missing/model/x",
    "verify base text.txt",
    "verify base lora.gguf --rounding foo",
    "verify base lora.gguf --text text.txt",
    "verify base lora.gguf --logits --text missing.txt",
    "chat text.txt --prompt a",
    "chat lora.gguf --adapter foo --prompt a",
    "chat lora.gguf --adapter x=lora.gguf --adapter x=lora.gguf --prompt a",
    "eval base --rank max",
    "eval base --samples text.txt",
    "eval base --text missing.txt",
    "inspect base --plot picture.xyz",
    "inspect base --plot text.txt",
    "demo --out base",
    "demo --out text.txt",
    "demo --model run",
]


@pytest.mark.parametrize("line", WRONG_BESIDE)
def test_a_wrong_option_beside_right_arguments_is_refused_before_pytorch_is_imported(line, samples):
    code, modules = child(*line.split())
    assert code == 2
    assert {"torch", "transformers", "peft", "llama_cpp"} & modules == set()


@pytest.mark.parametrize("package", ["sqft_plugins", "gguf_ext", "vllm_ext"])
def test_importing_a_package_costs_next_to_nothing(package):
    modules = child(imports=package, run=False)[1]
    assert len({name for name in modules if name.partition(".")[0] in OURS}) <= 12
    assert packages(modules) <= {"pluggy"}
