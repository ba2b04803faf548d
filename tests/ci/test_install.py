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
from install_common import InstallError
from install_lanes import LANES, Lane

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "install.py"


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

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
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    monkeypatch.setattr(install_llama, "pip", lambda python, *arguments: [sys.executable, "-c", fake, *arguments])
    return tmp_path / "wheels"


def lane_in(folder: Path) -> Lane:
    return Lane("demo", folder, folder / "pins.txt", ("demo",), 1)


def build(compiler: str = "g++ 12") -> Path:
    folder = install_jobs.ROOT  # the fixture's
    installer = install_jobs.Installer(folder / "log")
    return install_llama.build_llama(installer, lane_in(folder), "0.3.36", "-DGGML_NATIVE=OFF", compiler)()


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


def test_the_fingerprint_sees_what_matters():
    same = install.fingerprint(PYPROJECT, "pins", "args")
    assert same == install.fingerprint(PYPROJECT | {"tool": {"ruff": {"line-length": 1}}}, "pins", "args")
    assert same != install.fingerprint(PYPROJECT, "pins", "other args")
    assert same != install.fingerprint(PYPROJECT, "pinsargs", "")
    assert same != install.fingerprint(PYPROJECT | {"project": {"name": "x"}}, "pins", "args")


def test_the_fingerprint_sees_the_users_constraints(tmp_path):
    caps = tmp_path / "caps.txt"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho \"global.constraint='{caps}'\"\n")
    lane = Lane("newest", tmp_path, LANES["newest"].pins, (), 1)

    without_pip = install.inputs(lane, "")
    python.chmod(0o755)
    missing = install.inputs(lane, "")
    caps.write_text("numpy<3\n")
    before = install.inputs(lane, "")
    caps.write_text("numpy<2\n")
    assert len({without_pip, missing, before, install.inputs(lane, "")}) == 4


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, 6), ({"index-url": ["x"]}, 6), ({"extra-index-url": ["x"]}, 1), ({"find-links": []}, 1)],
)
def test_the_disk_that_is_needed_depends_on_the_build_of_torch(monkeypatch, tmp_path, settings, needed):
    asked: list[int] = []
    monkeypatch.setattr(install, "check_space", lambda folder, needed, remedy: asked.append(needed))
    lane = lane_in(tmp_path)
    install.check_disk(lane, settings)
    assert asked == [needed]

    (tmp_path / "lib" / "python3.11" / "site-packages" / "torch").mkdir(parents=True)
    install.check_disk(lane, settings)
    assert asked == [needed]


def test_without_constraints_the_pins_are_copied_and_nothing_is_run(tmp_path):
    (tmp_path / "source.txt").write_text("torch==2.15.0\n")
    lane = Lane("newest", tmp_path, tmp_path / "source.txt", (), 1)  # it has no Python
    install.write_allowed_pins(lane, [])
    assert lane.allowed_pins.read_text() == "torch==2.15.0\n"


@pytest.mark.parametrize(
    ("recorded", "wanted", "enough"),
    [
        ("vllm", "vllm", True),
        ("vllm", "demo", True),
        ("demo", "demo", True),
        ("demo", "vllm", False),
        ("newest", "vllm", False),
        ("vllm", "newest", False),
        ("test", "demo", False),  # what an earlier version wrote
        (None, "demo", False),
    ],
)
def test_a_lane_satisfies_a_smaller_one_in_its_folder(recorded, wanted, enough):
    lane = LANES[wanted]
    assert install.satisfied({"lane": recorded, "fingerprint": "f"}, "f", lane) is enough
    assert not install.satisfied({"lane": recorded, "fingerprint": "g"}, "f", lane)
    assert not install.satisfied({}, "f", lane)


def test_packages_that_were_cut_off_are_forgotten(monkeypatch, tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in {
        "whole-1.dist-info": ["METADATA", "RECORD", "INSTALLER"],
        "half_by_pip-1.dist-info": ["METADATA", "INSTALLER"],
        "half_by_uv-1.dist-info": ["METADATA", "RECORD"],
        "~orch": ["x"],
    }.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).touch()
    install.mend(tmp_path)
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


UV_OFFLINE = "error: Failed to fetch: http://h/x/\n  cause: error sending request for url (http://h/x/)"
UV_BUSY = "error: Failed to fetch: http://h/x/\n  cause: HTTP status server error (503 Service Unavailable)"
UV_CUT_OFF = "error: Failed to fetch: http://h/x/\n  cause: error decoding response body for url (http://h/x/)"
UV_REFUSED = "error: Failed to fetch: http://h/x/\n  cause: HTTP status client error (403 Forbidden)"


@pytest.mark.parametrize(
    ("message", "tries"),
    [
        ("Read timed out.", 2),
        (UV_OFFLINE, 2),
        (UV_BUSY, 2),
        (UV_CUT_OFF, 2),
        ("No matching version", 1),
        (UV_REFUSED, 1),
    ],
)
def test_a_failure_shows_the_end_of_its_log(tmp_path, capsys, monkeypatch, message, tries):
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    with pytest.raises(InstallError, match="pip failed with exit code 1: the whole log is log"):
        wait(job(tmp_path, f"import sys; sys.exit({message!r})"))
    assert message.splitlines()[-1] in capsys.readouterr().err
    assert (tmp_path / "log").read_text().count("\n$ ") == tries


def test_a_failed_compile_ends_the_install_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(install_jobs, "ROOT", tmp_path)
    with install_jobs.Installer(tmp_path / "pip.log") as installer:
        compile_ = [sys.executable, "-c", "import sys; sys.exit('no such instruction')"]
        installer.run_behind("compiling", compile_, tmp_path / "compile.log", dict(os.environ))
        with pytest.raises(InstallError, match=r"compiling failed with exit code 1: the whole log is compile\.log"):
            installer.run("packages", [sys.executable, "-c", "import time; time.sleep(600)"])
    assert installer.jobs[1].process.poll() is not None  # and nothing is left running


def clone(tmp_path, *names: str) -> Path:
    scripts = [f".ci/{path.name}" for path in SCRIPT.parent.iterdir() if path.is_file()]
    pins = [f"pins/{path.name}" for path in (ROOT / "pins").iterdir()]
    for name in ("Makefile", "pyproject.toml", *pins, *scripts):
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


def test_no_python_at_all_is_one_line_that_names_them(tmp_path):
    result = make(clone(tmp_path), "demo", "PYTHON=")
    assert result.returncode != 0
    assert "none of python3.11 python3.12 python3.13 runs here" in result.stderr


def test_the_first_python_that_runs_is_taken(tmp_path):
    """A name on the path that does not run, as pyenv leaves it for versions that are not chosen, is passed over."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {"python3.11": "exit 127", "python3.12": "exit 0", "python3.13": "exit 0"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    command = ["make", "--dry-run", "install", "-f", str(ROOT / "Makefile")]
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "python3.12 .ci/install.py vllm" in result.stdout


@pytest.mark.parametrize(("lane", "other_peft", "left_out"), [
    ("vllm", False, True), ("vllm", True, False), ("newest", False, False), ("oldest", False, False),
])  # fmt: skip
def test_pefts_own_tests_run_once_for_each_peft(tmp_path, lane, other_peft, left_out):
    folder = clone(tmp_path)
    if other_peft:
        newest = folder / "pins" / "newest.txt"
        newest.write_text(newest.read_text().replace("\npeft==", "\npeft==1!"))
    result = make(folder, "--dry-run", f"test-{lane}")
    assert f"{LANES[lane].venv.name}/bin/python -m pytest" in result.stdout
    assert ("--ignore tests/peft_ext/upstream" in result.stdout) == left_out


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
        install.check_machine(LANES["demo"])


def test_no_place_for_wheels_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "WHEELS", tmp_path / "sqft" / "llama-cpp-python")
    monkeypatch.setattr(install.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InstallError, match=rf"cannot be made, {tmp_path} is not writable: set SQFT_WHEELS"):
        install.check_machine(LANES["demo"])


def test_a_full_disk_is_one_line():
    with pytest.raises(InstallError, match=r"has \d+\.\d GB free and the installation needs about 1000000 there: move"):
        install.check_space(ROOT, 1_000_000, "move")
