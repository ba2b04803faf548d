"""What a killed process leaves beside an output goes with the next that writes it; what a living one holds stays."""

from __future__ import annotations

import os
import signal

import pytest

from sqft_plugins.checkpoint import leftovers
from sqft_plugins.checkpoint.files import check_output, scratch_folder, write_file, write_folder
from sqft_plugins.checkpoint.leftovers import DONE, JOB, partial_folder, replace, work_folder
from sqft_plugins.errors import OutputExistsError

pytestmark = pytest.mark.once
CALLS = ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync")


def killed_at(count: int, work) -> bool:
    """Runs `work` in a process that dies at its call number `count` to the system → whether it got so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen = [0]

    def counted(call):
        def called(*arguments, **options):
            seen[0] += 1
            if seen[0] > count:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return called

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    leftovers._swapped = counted(leftovers._swapped)
    try:
        work()
    finally:
        os._exit(0)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("swaps", [True, False], ids=["swap", "two renames"])
@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_and_the_next_run_nothing_else(
    tmp_path, monkeypatch, kind, old, swaps
) -> None:
    out = tmp_path / "out"
    if not swaps:
        monkeypatch.setattr(leftovers, "_swapped", lambda one, other: False)

    def write(text: str) -> None:
        if kind == "file":
            with write_file(out, overwrite=True) as file:
                file.write_text(text)
        else:
            with write_folder(out, overwrite=True) as folder:
                (folder / "a").write_text(text)
                (folder / "b").write_text(text)

    def found() -> list[str]:
        return [out.read_text()] * 2 if kind == "file" else [(out / name).read_text() for name in names(out)]

    (tmp_path / ".outer.12345678.partial").touch()  # of another output
    count = 0
    while True:
        if old:
            write("old")
        elif out.exists():
            os.remove(out) if kind == "file" else leftovers.discard(out, out)
        if not killed_at(count, lambda: write("new")):
            break
        check_output(out, overwrite=True)  # as the next command begins; where it needs two renames the old comes back
        assert not out.exists() if not old and not out.exists() else found() in (["old"] * 2, ["new"] * 2)
        assert out.exists() or not old
        assert names(tmp_path) == sorted([".outer.12345678.partial", *(["out"] if out.exists() else [])])
        write("again")
        assert found() == ["again"] * 2
        count += 1
    assert count >= 3


def test_what_a_living_process_writes_is_not_swept(tmp_path) -> None:
    with write_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        check_output(tmp_path / "out")
        with write_folder(tmp_path / "out") as other:
            (other / "whole").touch()
        assert (folder / "half").exists()
        (folder / "second").touch()
        with pytest.raises(OutputExistsError):
            check_output(tmp_path / "out")
        assert (folder / "half").exists()


def test_two_names_are_swapped_at_once(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert leftovers._swapped(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        leftovers._swapped(tmp_path / "a", tmp_path / "none")
    with partial_folder(tmp_path / "b") as folder:
        (folder / "new").touch()
        replace(folder, tmp_path / "b")
    assert names(tmp_path / "b") == ["new"]
    assert names(tmp_path) == ["a", "b"]


def test_a_refused_run_removes_the_work_of_a_finished_one_and_keeps_unfinished_work(tmp_path) -> None:
    out, job = tmp_path / "out", work_folder(tmp_path / "out", JOB)
    out.mkdir()
    job.mkdir()
    (job / "progress.json").touch()
    with pytest.raises(OutputExistsError):
        check_output(out)
    assert (job / "progress.json").exists()
    (job / DONE).touch()
    with scratch_folder(out) as work:
        with pytest.raises(OutputExistsError):
            check_output(out)
        assert work.exists()
    assert names(tmp_path) == ["out"]
