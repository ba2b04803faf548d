"""A third party's plug-in, examples/sqft-ria-pruner, from packaging to use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sqft_plugins.mask import Pattern

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[3]


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
