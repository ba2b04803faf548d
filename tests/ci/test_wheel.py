"""The wheel and the sdist: what is in them, and that the wheel works where nothing of the clone is on the path.

Whole environments, each extra alone, pip and uv, several Pythons: `.ci/try_wheel.py`, which a release runs.
"""

from __future__ import annotations

import email
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from sqft_plugins.kernels.build import ARCHITECTURES, FLAGS, BuildError, find_compiler

ROOT = Path(__file__).parents[2]
PACKAGES = ("sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
DATA = ("*.py", "*/py.typed", "*/templates/*.jinja", "*/templates/*.css", "*/lm_tasks/*.yaml", "*/csrc/*")
"""What of the packages belongs into both."""
KERNELS = "sqft_plugins/kernels/libsqft_kernels"
DOOR = "gguf_ext/backend/libggml_sqft"
LIBRARIES = ("libsqft_kernels*", "libggml_sqft*")
MACHINE = ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower())


def build(source: Path, out: Path, *kinds: str, **environment: str) -> Path:
    """`python -m build` of what is in `source`, with this environment's setuptools → the file that it made."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *kinds, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return max(out.iterdir(), key=lambda file: file.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Made from a clone that was used: compiled in place, with tests and rubbish."""
    clone = tmp_path_factory.mktemp("clone")
    for name in FILES:
        shutil.copy(ROOT / name, clone)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", *LIBRARIES))
    for rubbish in (f"{KERNELS}.so", f"{KERNELS}.json", "tests/test_imports.py", "models/model.py", "build/lib/old.py"):
        (clone / rubbish).parent.mkdir(parents=True, exist_ok=True)
        (clone / rubbish).write_text("left over\n")
    return build(clone, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    """The folder of the sdist, alone."""
    with tarfile.open(sdist) as archive:
        folder = tmp_path_factory.mktemp("unpacked")
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """Built from the sdist, with the kernels."""
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return build(unpacked, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def plain(unpacked, tmp_path_factory) -> Path:
    """Built where no compiler works."""
    return build(unpacked, tmp_path_factory.mktemp("plain"), "--wheel", CXX="false")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`python ARGUMENTS` far from the clone, with the files of a wheel first on the path → the finished process."""
    places: dict[Path, Path] = {}

    def started(wheel: Path, *arguments: str) -> subprocess.CompletedProcess:
        if wheel not in places:
            places[wheel] = tmp_path_factory.mktemp("site")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(places[wheel])
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SQFT_")}
        environment["PYTHONPATH"] = str(places[wheel])
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=places[wheel].parent)

    return started


def files_of_the_packages() -> set[str]:
    files = {file.relative_to(ROOT).as_posix() for name in PACKAGES for file in (ROOT / name).rglob("*")}
    return {file for file in files if any(fnmatch(file, pattern) for pattern in DATA)}


def test_the_sdist_has_the_packages_and_what_describes_them(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name.startswith("sqft_plugins.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == files_of_the_packages() | set(FILES)


def test_the_wheel_has_the_packages_the_kernels_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    described = {name for name in names if ".dist-info/" in name}
    built = {f"{library}.{kind}" for library in (KERNELS, DOOR) for kind in ("so", "json")}
    assert names - described == files_of_the_packages() | built
    assert {Path(name).name for name in described} == {
        *("LICENSE", "METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")
    }


def test_one_wheel_serves_every_python_of_the_platform(wheel):
    tag = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.stem.endswith(tag)
    described = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/WHEEL"))
    assert f"Tag: {tag}\n" in zipfile.ZipFile(wheel).read(described).decode()


def test_the_metadata_names_licence_readme_and_entry_points(wheel):
    with zipfile.ZipFile(wheel) as archive:
        described = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if "dist-info" in name}
    metadata = email.message_from_string(described["METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# sqft-plugins")
    assert {"peft", "gguf", "vllm", "demo"} <= set(metadata.get_all("Provides-Extra"))
    for line in ("sqft = sqft_plugins.cli:main", "peft_ext = peft_ext.plugin", "sqft = vllm_ext.register:register"):
        assert line in described["entry_points.txt"]


def test_it_says_for_which_machine_the_kernels_are(wheel):
    facts = json.loads(zipfile.ZipFile(wheel).read(f"{KERNELS}.json"))
    assert facts["architecture"] == MACHINE
    known = [name for name, (architecture, _) in FLAGS.items() if architecture == MACHINE]
    assert known[0] in facts["instruction_sets"]  # every compiler of today has it; a later one may be too new for it
    assert facts["instruction_sets"] == [name for name in known if name in facts["instruction_sets"]]
    assert facts["compiler"]


def test_the_kernels_of_the_wheel_run_and_are_right(wheel, run):
    done = run(wheel, "-m", "sqft_plugins.kernels")
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert Path(shown["library"]).parents[2].name.startswith("site")
    assert shown["built"].startswith(f"for {MACHINE} with scalar")
    assert "scalar" in shown["runs"]
    assert shown["right"] == "all"


VERBS = """
import importlib.metadata, sys
import sqft_plugins, vllm_ext.plugin, gguf_ext.plugin
assert "site" in sqft_plugins.__file__, sqft_plugins.__file__
(script,) = importlib.metadata.distribution("sqft-plugins").entry_points.select(group="console_scripts")
for verb in ("--help", "plugins", "doctor"):
    try:
        script.load()([verb])
    except SystemExit as end:
        assert not end.code, verb
"""


def test_the_command_line_of_the_wheel(wheel, run):
    done = run(wheel, "-c", VERBS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Usage:" in done.stdout
    assert f"built for {MACHINE} with scalar" in done.stdout


LINEAR = """
import torch
from sqft_plugins.kernels import SparseInt4Weight
for seed in range(2):
    torch.manual_seed(seed)
    weight = SparseInt4Weight.from_codes(torch.randint(0, 16, (16, 64), dtype=torch.uint8), torch.ones(16, 1))
    print(weight.linear(torch.ones(1, 64)).shape)
"""


def test_without_a_compiler_there_is_a_wheel_that_says_once_that_torch_serves(plain, run):
    assert not [name for name in zipfile.ZipFile(plain).namelist() if name.endswith((".so", ".json"))]
    done = run(plain, "-c", LINEAR)
    assert done.returncode == 0, done.stderr
    notices = [line for line in done.stderr.splitlines() if "sparse INT4 kernels: plain torch, slow" in line]
    assert len(notices) == 1
    assert "python -m sqft_plugins.kernels.build" in notices[0]


def test_without_a_compiler_asking_for_the_kernels_is_one_line(plain, run):
    done = run(plain, "-m", "sqft_plugins.kernels")
    assert (done.returncode, done.stdout) == (1, "")
    assert "was not built" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # it compiles once more
def test_the_kernels_can_be_compiled_later_from_what_the_wheel_has(plain, run):
    find_compiler()
    assert run(plain, "-m", "sqft_plugins.kernels.build").returncode == 0
    assert run(plain, "-m", "sqft_plugins.kernels").returncode == 0
