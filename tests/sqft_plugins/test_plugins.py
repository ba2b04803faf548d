"""The plug-in host, `sqft plugins`, `sqft export`, and a third party's plug-in from packaging to use."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch

from sqft_plugins.cli import main
from sqft_plugins.errors import SQFTError
from sqft_plugins.mask import Pattern
from sqft_plugins.plugins import hookimpl, hookspecs, protocols
from sqft_plugins.plugins.manager import GROUP, build_manager

ROOT = Path(__file__).parents[2]


def module(monkeypatch, name: str, **functions) -> EntryPoint:
    """A plug-in that lives only in sys.modules."""
    made = ModuleType(name)
    for key, function in functions.items():
        setattr(made, key, function)
    monkeypatch.setitem(sys.modules, name, made)
    return EntryPoint(name=name, value=name, group=GROUP)


class Named:
    statistic = "none"

    def __init__(self, name: str):
        self.name = name


def offers(name: str):
    @hookimpl
    def sqft_pruners():
        return [Named(name)]

    return sqft_pruners


def test_none_loads_the_core_alone(monkeypatch):
    monkeypatch.setenv("SQFT_PLUGINS", "none")
    host = build_manager()
    assert [name for name, _ in host.manager.list_name_plugin()] == ["sqft_plugins"]
    assert {"wanda", "sparsegpt", "magnitude"} <= set(host.collect("sqft_pruners"))
    assert not host.broken


def test_a_list_loads_only_those(monkeypatch):
    points = [module(monkeypatch, f"plug_{name}", sqft_pruners=offers(name)) for name in "ab"]
    monkeypatch.setenv("SQFT_PLUGINS", "plug_b, plug_c")
    host = build_manager(points)
    assert "b" in host.collect("sqft_pruners")
    assert "a" not in host.collect("sqft_pruners")
    assert host.broken == {
        "plug_c": "SQFT_PLUGINS names it, but it is not installed: did you mean 'plug_b'? known: plug_a, plug_b"
    }


def test_the_surfaces_come_in_through_the_entry_points(monkeypatch):
    monkeypatch.delenv("SQFT_PLUGINS", raising=False)
    host = build_manager()
    loaded = {name for name, _ in host.manager.list_name_plugin()} | set(host.broken)
    assert {"peft_ext", "vllm_ext", "gguf_ext"} <= loaded


def test_broken_plugins_are_reported_and_the_rest_is_loaded(monkeypatch):
    @hookimpl
    def sqft_pruner():  # not a hook: the s is missing
        return []

    @hookimpl
    def sqft_quantizers(model):  # the hook has no such argument
        return []

    monkeypatch.delenv("SQFT_PLUGINS", raising=False)
    host = build_manager(
        [
            EntryPoint(name="absent", value="no_such_module_anywhere", group=GROUP),
            EntryPoint(name="half", value="json:no_such_attribute", group=GROUP),
            module(monkeypatch, "plug_typo", sqft_pruner=sqft_pruner),
            module(monkeypatch, "plug_argument", sqft_quantizers=sqft_quantizers),
            module(monkeypatch, "plug_well", sqft_pruners=offers("well")),
        ]
    )
    assert set(host.broken) == {"absent", "half", "plug_typo", "plug_argument"}
    assert "no_such_module_anywhere" in host.broken["absent"]
    assert "sqft_pruner" in host.broken["plug_typo"]
    assert {"well", "wanda"} <= set(host.collect("sqft_pruners"))
    assert "round-to-nearest" in host.collect("sqft_quantizers")


def test_two_of_one_name_are_an_error(monkeypatch):
    host = build_manager([module(monkeypatch, "plug_wanda", sqft_pruners=offers("wanda"))])
    with pytest.raises(SQFTError, match="two plug-ins offer 'wanda' through sqft_pruners"):
        host.collect("sqft_pruners")


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(SQFTError, match=r"--method 'wamda' is unknown: did you mean 'wanda'\? known: .*magnitude"):
        build_manager([]).get("sqft_pruners", "wamda", "--method")


HOOKS = [name for name, function in vars(hookspecs).items() if hasattr(function, "sqft_spec")]
PROTOCOLS = [name for name, kind in vars(protocols).items() if getattr(kind, "__module__", "") == protocols.__name__]


def test_the_hooks_are_found():
    assert {"sqft_pruners", "sqft_commands"} <= set(HOOKS)
    assert {"Pruner", "Check", "Item"} <= set(PROTOCOLS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    assert inspect.getdoc(getattr(hookspecs, hook)), f"{hook} has no docstring in hookspecs.py"
    page = ROOT / "docs/how-to/write-a-plugin.md"
    assert f"`{hook}" in page.read_text(), f"{hook} is missing in {page}"


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "Searcher"])
def test_every_protocol_is_documented(protocol):
    assert f"**`{protocol}`**" in (ROOT / "docs/how-to/write-a-plugin.md").read_text(), (
        f"{protocol} is missing in docs/how-to/write-a-plugin.md"
    )


@pytest.fixture
def sqft(monkeypatch, capsys):
    """`sqft(host, *arguments)` → exit code, stdout, stderr."""

    def run(host, *arguments: str):
        monkeypatch.setattr("sqft_plugins.plugins.get_manager", lambda: host)
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return end.value.code, *capsys.readouterr()

    return run


def test_plugins_table(sqft, monkeypatch):
    absent = EntryPoint(name="absent", value="no_such_module_anywhere", group=GROUP)
    host = build_manager([absent, module(monkeypatch, "plug_well", sqft_pruners=offers("well"))])
    code, out, _ = sqft(host, "plugins")
    assert code == 0
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "sqft_quantizers" in rows["sqft_plugins"]
    assert "sqft_pruners" in rows["plug_well"]
    assert "broken: ModuleNotFoundError" in rows["absent"]
    assert "sqft doctor" in out


class Format:
    name = "paper"
    command = click.Command("paper", callback=lambda: click.echo("printed"))


@hookimpl
def sqft_exporters():
    return [Format()]


def test_export_runs_the_command_of_the_format(sqft, monkeypatch):
    host = build_manager([module(monkeypatch, "plug_paper", sqft_exporters=sqft_exporters)])
    assert sqft(host, "export", "paper") == (0, "printed\n", "")
    assert "paper" in sqft(host, "export", "--help")[1]
    assert sqft(host, "export") == (2, "", "sqft: export needs a format: known: paper\n")
    unknown = "sqft: export format 'papper' is unknown: did you mean 'paper'? known: paper\n"
    assert sqft(host, "export", "papper") == (2, "", unknown)


def test_export_without_formats_is_one_clear_line(sqft):
    host = build_manager([])
    code, _, error = sqft(host, "export", "gguf")
    assert code == 2
    assert error.startswith(
        "sqft: export format 'gguf' is unknown: known: none; no plug-in with formats is loaded: pip"
    )
    assert len(error.splitlines()) == 1
    host.broken["gguf_ext"] = "ImportError: x"
    assert "broken plug-ins: gguf_ext, see `sqft doctor`" in sqft(host, "export", "gguf")[2]


# --- the example of a third party ---


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """examples/sqft-ria-pruner built and installed into a folder of its own, without any index."""
    folder = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(ROOT / "examples" / "sqft-ria-pruner", folder / "source")  # the build writes beside it
    target = folder / "site"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return target


def test_the_example_is_listed(installed):
    env = {key: value for key, value in os.environ.items() if key != "SQFT_PLUGINS"} | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", "from sqft_plugins.cli import main; main()", "plugins", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(result.stdout)["plugins"]}
    ria = {"name": "ria", "package": "sqft-ria-pruner", "version": "0.1.0", "hooks": ["sqft_pruners"], "broken": None}
    assert plugins["ria"] == ria
    assert "sqft_pruners" in plugins["sqft_plugins"]["hooks"]
    assert {"peft_ext", "vllm_ext", "gguf_ext"} <= set(plugins)


def test_the_example_prunes_as_its_formula_says(installed, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 16, generator=generator)
    norm = torch.rand(16, generator=generator) + 0.1
    torch.save((weight, norm), tmp_path / "in.pt")
    code = f"""
import torch
from sqft_plugins.mask import Pattern
from sqft_plugins.plugins.manager import build_manager
weight, norm = torch.load({str(tmp_path / "in.pt")!r})
pruner = build_manager().get("sqft_pruners", "ria", "--method")
assert pruner.statistic == "norm"
patterns = ("0%", "50%", "70%", "100%", "2:4", "1:8")
torch.save({{p: pruner.prune(weight, norm, Pattern.parse(p)) for p in patterns}}, {str(tmp_path / "out.pt")!r})
"""
    env = {**os.environ, "PYTHONPATH": str(installed), "SQFT_PLUGINS": "ria"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)

    for text, (pruned, mask) in torch.load(tmp_path / "out.pt").items():
        pattern = Pattern.parse(text)
        group = pattern.group or 16
        for row in range(6):
            score = []
            for column in range(16):
                size = abs(weight[row, column].item())
                relative = size / weight[row].abs().sum().item() + size / weight[:, column].abs().sum().item()
                score.append(relative * norm[column].item() ** 0.5)
            lowest = set()
            for start in range(0, 16, group):
                order = sorted(range(start, start + group), key=score.__getitem__)
                lowest |= set(order[: round(pattern.sparsity * group)])
            assert lowest == set(torch.nonzero(~mask[row]).flatten().tolist())
        assert torch.equal(pruned, weight * mask)
