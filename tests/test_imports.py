"""The arrows: each surface imports the core and its own library, never another surface's.

Each case runs in a process of its own. A library is made absent with `sys.modules[name] = None`: importing it then
raises ModuleNotFoundError, and `importlib.util.find_spec` says None, as where it was never installed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
LIBRARIES = {
    "sqft_plugins": set(),
    "peft_ext": {"peft"},
    "vllm_ext": {"vllm"},
    "gguf_ext": {"gguf", "llama_cpp"},
}
"""Surface → what it, and no other, may import."""
EVERY = set().union(*LIBRARIES.values())
AT_IMPORT = {"peft_ext": {"peft"}}
"""Surface → what importing it alone may need: an SQFTConfig is a peft config. The others import theirs when used."""


def run(code: str, absent: set[str] = frozenset()) -> str:
    block = f"import sys\nfor name in {sorted(absent)!r}: sys.modules[name] = None\n"
    result = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def imports(surface: str) -> str:
    return f"import {surface}" if surface == "sqft_plugins" else f"import {surface}, {surface}.plugin"


@pytest.mark.parametrize("surface", LIBRARIES)
def test_imports_without_the_others_libraries(surface):
    needed = AT_IMPORT.get(surface, set())
    for library in needed:
        pytest.importorskip(library)
    assert run(imports(surface), absent=EVERY - needed) == ""


@pytest.mark.parametrize("surface", LIBRARIES)
def test_pulls_in_no_other_surface(surface):
    needed = AT_IMPORT.get(surface, set())
    for library in needed:
        pytest.importorskip(library)
    foreign = (EVERY - needed) | (set(LIBRARIES) - {surface, "sqft_plugins"})
    loaded = run(f"import sys\n{imports(surface)}\nprint(*{{name.split('.')[0] for name in sys.modules}})").split()
    assert foreign & set(loaded) == set()


VERBS = [
    "--help",
    "prune --help",
    "quantize --help",
    "inspect --help",
    "export --help",
    "doctor --help",
    "plugins --json",
]


def test_the_command_line_works_with_the_core_alone():
    code = f"""
from sqft_plugins.cli import main
for arguments in {VERBS!r}:
    try:
        main(arguments.split())
    except SystemExit as end:
        assert not end.code, arguments
    print("END", arguments)
"""
    shown = run(code, absent=EVERY).split("END ")
    assert all(verb in shown[0] for verb in ("prune", "quantize", "train", "merge", "export", "demo"))
    plugins = {plugin["name"]: plugin["broken"] for plugin in json.loads(shown[-2].split("\n", 1)[1])["plugins"]}
    assert plugins == {"sqft_plugins": None, "peft_ext": None, "vllm_ext": None, "gguf_ext": None}


def test_help_imports_no_library_of_the_runtimes():
    code = """
from sqft_plugins.cli import main
try:
    main(["--help"])
finally:
    print("LOADED", *{name.split(".")[0] for name in sys.modules})
"""
    assert {"vllm", "llama_cpp", "gguf"} & set(run(code).split("LOADED")[1].split()) == set()


@pytest.mark.parametrize("surface", sorted(LIBRARIES.keys() - {"vllm_ext"}))  # vLLM runs on Linux alone
def test_no_module_begins_by_importing_what_windows_lacks(surface):
    folder = Path(__file__).parents[1] / surface
    for file in folder.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"fcntl", "grp", "pwd", "resource", "termios"} & set(names), file


def test_every_module_imports_where_linux_modules_are_missing():
    """Windows has no fcntl and no resource, and lacks some names of os and signal. The libraries are imported before:
    on Linux they use them."""
    code = """
import importlib, os, pkgutil, signal
import accelerate.utils, optuna, peft, torch, transformers.trainer
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for module, name in ((signal, "SIGHUP"), (signal, "SIGPIPE"), (signal, "SIGKILL"), (os, "EX_SOFTWARE"), (os, "fork")):
    delattr(module, name)
import gguf_ext, peft_ext, sqft_plugins
for package in (sqft_plugins, peft_ext, gguf_ext):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "libsqft_kernels", "libggml_sqft")):  # two are no modules
            importlib.import_module(module.name)
"""
    pytest.importorskip("peft")
    run(code)
