"""The commands of docs/reliability.md, in a size of seconds: each ends with no finding, and finds what is broken."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def ran(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("kills", ["--quick", "--only", "merge", "export in parts"], marks=pytest.mark.slow),  # minutes
        ("fuzz", ["--inputs", "12"]),
        ("names", ["--quick"]),
    ],
)
def test_a_command_ends_with_no_finding(name, arguments) -> None:
    if name == "names":
        pytest.importorskip("vllm")
    done = ran(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("0 findings in ")


def test_a_finding_is_found(monkeypatch, tmp_path) -> None:
    """A reader that raises, one that is slow, and one that opens what it should not accept."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("fuzz_under_test", BENCHMARKS / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.json").write_text('{"a": [1, 2]}')

    def read(folder: Path) -> None:
        if (folder / "x.json").read_bytes() != b'{"a": [1, 2]}':
            raise KeyError("a")

    monkeypatch.setitem(fuzz.READERS, "broken", ("in", "x.json", fuzz.mutate_json, read))
    row = fuzz.fuzz("broken", tmp_path, tmp_path, 20, 0)
    assert sum(row["kinds"].values()) + row["accepted"] == 20
    assert row["kinds"]["KeyError at ?"] > 10
