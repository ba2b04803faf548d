"""Makes an environment: `python3.11 .ci/install.py demo|vllm|newest|oldest`. `... lock` writes the pins of all of them,
`... clean-wheels` removes the compiled llama.cpp that checkouts share.

Standard library only. Everything comes from the package registries that pip is configured for; pip's configuration and
PIP_* variables are the user's and stay untouched. docs/how-to/install.md tells the same in words.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from install_common import ROOT, InstallError, read_pyproject, say, take_lock
from install_jobs import Installer
from install_lanes import CUDA_GB, LANES, Lane
from install_llama import HOOK, WHEELS, build_llama, check_compiler, cmake_args
from install_lock import lock
from install_peft_tests import fetch_peft_tests
from install_pins import pin, requirements, without
from install_tool import get_tool, read_pip_settings
from install_vllm import install_vllm

BUILT_APART = {"llama-cpp-python", "vllm", "sqft-plugins"}

# --- is it up to date: pure functions, tested in tests/ci/test_install.py ---


def fingerprint(pyproject: dict, *rest: str) -> str:
    """A hash over what the environment depends on. Of pyproject.toml only the parts that pip reads: a linter's setting
    must not reinstall everything."""
    parts = [json.dumps([pyproject["build-system"], pyproject["project"]], sort_keys=True), *rest]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def satisfied(state: dict, wanted: str, lane: Lane) -> bool:
    """Whether what `state` records is at least this lane, made from the same inputs."""
    recorded = LANES.get(state.get("lane", ""))
    return state.get("fingerprint") == wanted and recorded is not None and has_all_of(recorded, lane)


def has_all_of(there: Lane, wanted: Lane) -> bool:
    return there.venv == wanted.venv and set(there.extras) >= set(wanted.extras)


# --- what this machine has ---


def check_machine(lane: Lane) -> None:
    """Everything that would fail minutes later, said now."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            f"{sys.executable} has no venv module: on Debian `apt-get install {debian_venv()}`"
        ) from None
    for folder in (ROOT, lane.venv):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise InstallError(
                f"{folder} is not writable: give yourself write permission, or clone into a folder of yours"
            )
    wheels = next(folder for folder in (WHEELS, *WHEELS.parents) if folder.exists())
    if not os.access(wheels, os.W_OK):
        raise InstallError(f"{WHEELS} cannot be made, {wheels} is not writable: set SQFT_WHEELS to a folder of yours")
    check_space(Path(tempfile.gettempdir()), 1, "free some space, or set TMPDIR to a folder elsewhere")


def check_disk(lane: Lane, settings: dict[str, list[str]]) -> None:
    """Whether the packages fit, unless the largest of them is there. Only an extra index or a folder of wheels can have
    the CPU build of torch."""
    if any(lane.venv.glob("lib/python*/site-packages/torch")):
        return
    if {"extra-index-url", "find-links"} & set(settings):
        check_space(ROOT, lane.disk_gb, "free some space")
    else:
        remedy = "free some space, or name an index with the CPU build of torch (docs/how-to/install.md)"
        check_space(ROOT, lane.disk_gb + CUDA_GB, remedy)


def debian_venv() -> str:
    return "python{}.{}-venv".format(*sys.version_info)


def check_space(folder: Path, needed: int, remedy: str) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise InstallError(f"{folder} has {free:.1f} GB free and the installation needs about {needed} there: {remedy}")


# --- the steps ---


def make_venv(lane: Lane) -> None:
    """The environment, made anew when it does not run or was copied from another folder (its scripts call the Python
    there)."""
    config = lane.venv / "pyvenv.cfg"
    in_place = config.is_file() and str(lane.venv) in config.read_text()
    if in_place and works(lane, f"import pip, sys; assert sys.version_info[:2] == {sys.version_info[:2]}"):
        mend(lane.venv)
        return
    again = " anew (it does not run here, has another Python, or was copied)" if lane.venv.exists() else ""
    say(f"making {lane.venv.name}{again} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(lane.venv)], capture_output=True, text=True)
    if made.returncode:
        reason = " ".join((made.stdout + made.stderr).strip().splitlines()[-1:])
        raise InstallError(f"python -m venv {lane.venv} failed ({reason}): on Debian `apt-get install {debian_venv()}`")


def works(lane: Lane, code: str) -> bool:
    try:
        return subprocess.run([lane.python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def mend(venv: Path) -> None:
    """Forgets packages whose installation was cut off, which pip and uv would believe: of what stands in no wheel, pip
    writes RECORD last, uv INSTALLER behind all files. (uv links the wheel's own RECORD, in the order of the folder.)"""
    for site in venv.glob("lib/python*/site-packages"):
        for info in site.glob("*.dist-info"):
            if not ((info / "RECORD").is_file() and (info / "INSTALLER").is_file()):
                shutil.rmtree(info)
        for leftover in site.glob("~*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def inputs(lane: Lane, args: str) -> str:
    """The fingerprint of everything that the environment is made from here and now."""
    scripts = sorted(Path(__file__).parent.glob("*.py"))  # this one and what it imports
    libraries = (ROOT / "sqft_plugins/kernels", ROOT / "gguf_ext/backend")  # compiled by the editable install
    compiled = sorted(path for folder in libraries for path in (*folder.glob("build.py"), *folder.glob("csrc/*")))
    files = [path.read_text() for path in (lane.pins, HOOK, *scripts, *compiled)]
    # The user's constraints move pins. An index does not: what is installed satisfies its pin wherever it came from.
    for name in read_pip_settings(lane.python).get("constraint", []):
        files += [name, Path(name).read_text() if Path(name).is_file() else ""]
    return fingerprint(read_pyproject(), *files, args, str(shutil.which("nvidia-smi")), sys.version, str(ROOT))


def state_file(lane: Lane) -> Path:
    return lane.venv / "sqft-install.json"


def read_state(lane: Lane) -> dict:
    try:
        return json.loads(state_file(lane).read_text())
    except (OSError, ValueError):
        return {}


def ready(wanted: str, lane: Lane) -> bool:
    return satisfied(read_state(lane), wanted, lane) and works(lane, "")


def write_allowed_pins(lane: Lane, constraints: list[str]) -> None:
    """The lane's pins as the user's own constraints leave them, what was replaced told in a line."""
    if not constraints:
        shutil.copyfile(lane.pins, lane.allowed_pins)
        return
    script = Path(__file__).with_name("install_allowed.py")
    run = subprocess.run([lane.python, script, lane.pins, *constraints], capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise InstallError(f"the constraints of your pip, {' '.join(constraints)}, cannot be read: {reason}")
    lane.allowed_pins.write_text(run.stdout)
    for sentence in run.stderr.splitlines():
        say(sentence)


def install(lane: Lane) -> None:
    args = cmake_args()
    wanted = inputs(lane, args)
    if ready(wanted, lane):
        say(f"{lane.venv.name} is up to date ({lane.name})")
        return
    start = time.monotonic()
    project = read_pyproject()
    llama = pin(lane.pins.read_text(), "llama-cpp-python")
    compiler = check_compiler()
    check_machine(lane)
    take_lock(ROOT / ".cache" / "install.lock", "another install runs in this folder, waiting for it")
    if ready(wanted, lane):
        return

    there = LANES.get(read_state(lane).get("lane", ""))
    if there and has_all_of(there, lane):
        lane = there  # never less than what was there
    make_venv(lane)
    state_file(lane).unlink(missing_ok=True)
    wanted = inputs(lane, args)  # again: only now there is surely a pip that knows the constraints
    settings = read_pip_settings(lane.python)
    check_disk(lane, settings)
    tool = get_tool(lane, settings)
    write_allowed_pins(lane, settings.get("constraint", []))

    with Installer(lane.log, tool.environment) as installer:
        wheel = build_llama(installer, lane, llama, args, compiler)
        packages = [*project["build-system"]["requires"], *requirements(project["project"], lane.extras)]
        say(f"the log is {lane.log.relative_to(ROOT)}")
        installer.run(f"packages of the lane {lane.name}", tool.install(*without(packages, BUILT_APART)))
        if lane.vllm:
            install_vllm(installer, tool, lane, packages)
        built = wheel()
        installer.run("llama-cpp-python", tool.install("--no-deps", "--force-reinstall", str(built)))
        # Once more as a whole: nearly nothing is left to do, and it is checked that all of it fits together.
        editable = f"{ROOT}[{','.join(lane.extras)}]"
        installer.run("sqft-plugins, editable", tool.install("--no-build-isolation", "-e", editable))
    state_file(lane).write_text(json.dumps({"lane": lane.name, "fingerprint": wanted, "cmake_args": args}) + "\n")
    say(f"{lane.venv.name} is ready ({lane.name}) after {time.monotonic() - start:.0f} s")


def fetch_test_sources(lane: Lane) -> None:
    """What the tests have beside the environment. Looked for at every run, because .cache may be removed alone."""
    with Installer(lane.log) as installer:
        fetch_peft_tests(installer, lane.python, pin(lane.pins.read_text(), "peft"))


def main(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb not in (*LANES, "lock", "clean-wheels") or (len(arguments) > 1 and verb != "lock"):
        print(f"usage: python3.11 .ci/install.py {'|'.join(LANES)}|lock|clean-wheels", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if verb == "lock":
            lock(arguments[1:])
        elif verb == "clean-wheels":
            take_lock(WHEELS / "lock", f"an install compiles into {WHEELS}, waiting for it")
            shutil.rmtree(WHEELS)
            say(f"{WHEELS} is removed: the next installation compiles llama.cpp")
        else:
            install(LANES[verb])
            if "dev" in LANES[verb].extras:
                fetch_test_sources(LANES[verb])
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"install: {error.filename}: {error.strerror}: give yourself write permission", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error}: the same command goes on where it stopped", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
