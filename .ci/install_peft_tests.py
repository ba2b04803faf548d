"""PEFT's own tests, from its source distribution, into .cache: our tests run them against SQFTConfig
(tests/peft_ext/upstream)."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from install_common import ROOT, InstallError, say
from install_jobs import Installer
from install_tool import pip

PEFT_TESTS = ROOT / ".cache" / "peft-tests"


def fetch_peft_tests(installer: Installer, python: Path, version: str) -> Path:
    """The folder with the tests of that PEFT, fetched unless it is there."""
    folder = PEFT_TESTS / version
    if folder.is_dir():
        return folder
    PEFT_TESTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PEFT_TESTS, prefix="partial-") as name:
        partial = Path(name)
        # setuptools is in the environment already, so pip need not fetch it once more only to read the metadata
        source = ["--no-deps", "--no-build-isolation", "--no-binary=peft", f"--dest={partial}", f"peft=={version}"]
        installer.run(f"PEFT's own tests, {version}", pip(python, "download", "--progress-bar=off", *source))
        count = extract_tests(partial / f"peft-{version}.tar.gz", partial / "tests")
        (partial / "tests").rename(folder)
    say(f"{count} files of PEFT's tests are in {folder.relative_to(ROOT)}")
    return folder


def extract_tests(archive: Path, folder: Path) -> int:
    """The files of `<name>-<version>/tests/` in a source distribution, into `folder` → how many."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) > 2 and parts[1] == "tests":
                member.name = str(Path(*parts[2:]))
                members.append(member)
        if not members:
            raise InstallError(f"{archive.name} has no tests folder: tests/peft_ext/upstream cannot run with it")
        tar.extractall(folder, members, filter="data")
    return len(members)
