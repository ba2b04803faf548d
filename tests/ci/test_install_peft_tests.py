"""PEFT's own tests come out of its source distribution, and nothing else does."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

from install_common import InstallError
from install_peft_tests import extract_tests


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


def test_only_the_tests_are_taken(tmp_path) -> None:
    names = ["peft-1/tests/test_a.py", "peft-1/tests/data/b.json", "peft-1/src/peft/tests/c.py", "peft-1/setup.py"]
    count = extract_tests(archive(tmp_path / "peft-1.tar.gz", *names), tmp_path / "out")
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {"test_a.py", "data/b.json"}
    assert count == 2
    assert (tmp_path / "out" / "test_a.py").read_text() == names[0]


def test_an_archive_without_tests_is_one_line(tmp_path) -> None:
    with pytest.raises(InstallError, match=r"peft-1\.tar\.gz has no tests folder: tests/peft_ext/upstream cannot run"):
        extract_tests(archive(tmp_path / "peft-1.tar.gz", "peft-1/setup.py"), tmp_path / "out")


def test_a_path_that_leaves_the_folder_is_refused(tmp_path) -> None:
    with pytest.raises(tarfile.OutsideDestinationError):
        extract_tests(archive(tmp_path / "peft-1.tar.gz", "peft-1/tests/../../../evil.py"), tmp_path / "out")
    assert not (tmp_path.parent / "evil.py").exists()
