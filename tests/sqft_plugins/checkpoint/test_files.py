"""Outputs are whole or not there, whatever happens half-way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sqft_plugins.checkpoint import files, leftovers
from sqft_plugins.checkpoint.files import (
    check_output,
    check_output_file,
    check_output_folder,
    held_alone,
    scratch_folder,
    write_file,
    write_folder,
)
from sqft_plugins.errors import OutputExistsError, SQFTError


def old_folder(path: Path) -> Path:
    path.mkdir()
    (path / "old.txt").write_text("old")
    return path


def test_a_folder_appears_whole(tmp_path):
    with write_folder(tmp_path / "a" / "b") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "sub" / "x").read_text() == "x"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_a_place_where_the_system_refuses_to_write_is_told_in_one_line():
    place = Path("/proc/sqft/out")  # os.access calls /proc writable for root
    for write in (write_folder, write_file):
        with pytest.raises(SQFTError, match=r"--out /proc/sqft/out cannot be written"), write(place):
            pytest.fail("it was opened")


def test_a_place_that_takes_no_files_is_refused_before_any_work():
    """Of root os.access calls it writable."""
    for check in (check_output, check_output_file, check_output_folder):
        with pytest.raises(SQFTError, match="--out /proc/x cannot be written: /proc is not a writable folder"):
            check("/proc/x")


def test_looking_whether_a_folder_takes_files_leaves_none(tmp_path):
    check_output(tmp_path / "out")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from sqft_plugins.checkpoint.files import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    (folder / "float.gguf").write_text("large")
    (folder / "old").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_beside_an_output_is_removed_by_the_next(tmp_path):
    out = tmp_path / "out.gguf"
    assert subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.gguf.sqft-work"]

    with scratch_folder(out) as folder:
        assert [path.name for path in folder.iterdir()] == ["lock"]
        with pytest.raises(SQFTError, match="written by another process"), scratch_folder(out):
            pytest.fail("two at once")
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_keeps_the_old(tmp_path, error):
    old = old_folder(tmp_path / "out")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(error), write_folder(old, overwrite=True) as folder:
        fail(folder / "half")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in old.iterdir()] == ["old.txt"]
    with pytest.raises(error), write_file(tmp_path / "file") as file:
        fail(file)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_all_of_it(tmp_path):
    old = old_folder(tmp_path / "out")
    with write_folder(old, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [p.name for p in old.iterdir()] == ["new.txt"]
    (tmp_path / "file").write_text("old")
    with write_file(tmp_path / "file", overwrite=True) as file:
        file.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_ctrl_c_between_the_two_renames_brings_the_old_back(tmp_path, monkeypatch):
    """Where the file system cannot swap names."""
    old = old_folder(tmp_path / "out")
    rename = Path.rename
    monkeypatch.setattr(leftovers, "_swapped", lambda one, other: False)

    def interrupted(self, target):
        if self.name.endswith(".partial") and Path(target).name == "out" and (self / "new.txt").exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), write_folder(old, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [p.name for p in old.iterdir()] == ["old.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# loads the one module: importing its package would import torch and transformers four times
LOAD = f"""
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""
HOLDER = """
with files.held_alone(Path(sys.argv[1]), "--out x", "written"):
    print("holding", flush=True)
    time.sleep(60)
"""
WRITER = """
with files.write_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("old", [False, True])
def test_a_killed_process_leaves_no_target_and_keeps_the_old(tmp_path, number, old):
    target = tmp_path / "out"
    if old:
        old_folder(target)
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD + WRITER, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore Ctrl-C
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"writing"
    process.send_signal(number)
    process.wait(timeout=30)
    process.stdout.close()
    if old:
        assert [p.name for p in target.iterdir()] == ["old.txt"]
    else:
        assert not target.exists()
    left = [p.name for p in tmp_path.iterdir() if p != target]
    assert (
        left == [] if number == signal.SIGINT else all(n.startswith(".out.") and n.endswith(".partial") for n in left)
    )


def test_a_lock_is_refused_at_once_and_a_killed_process_lets_go(tmp_path):
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", LOAD + HOLDER, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"holding"
        with (
            pytest.raises(SQFTError, match="--out x is being written by another process: wait for it"),
            held_alone(lock, "--out x", "written"),
        ):
            pytest.fail("two hold it")
        process.kill()
    with held_alone(lock, "--out x", "written"), pytest.raises(SQFTError), held_alone(lock, "--out x", "written"):
        pytest.fail("two hold it, of one process")
    with held_alone(lock, "--out x", "written"):
        assert lock.exists()


def test_existing_outputs_are_refused(tmp_path):
    old = old_folder(tmp_path / "out")
    for write in (write_folder, write_file):
        with pytest.raises(OutputExistsError, match=r"--out .*out exists: .* --overwrite"), write(old):
            pass
    with pytest.raises(SQFTError, match="is a folder, a file goes there"), write_file(old, overwrite=True):
        pass
    with (
        pytest.raises(SQFTError, match="is a file, a folder goes there"),
        write_folder(old / "old.txt", overwrite=True),
    ):
        pass
    with pytest.raises(SQFTError, match="is not a writable folder"):
        check_output(old / "old.txt" / "below")
    assert (old / "old.txt").read_text() == "old"


def test_the_folder_one_stands_in_is_never_replaced(tmp_path, monkeypatch):
    work = old_folder(tmp_path / "work")
    monkeypatch.chdir(work)
    for path in (".", "..", str(work), os.path.expanduser("~")):
        with pytest.raises(SQFTError, match="is the current or the home folder"):
            check_output(path, overwrite=True)


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    real = old_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with write_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in real.iterdir()] == ["new.txt"]


def test_a_full_disk_is_one_line_and_keeps_the_old(small_disk):
    old = old_folder(small_disk / "out")
    with (
        pytest.raises(SQFTError, match=r"--out .*: the disk is full \(\d MiB free\)"),
        write_folder(old, overwrite=True) as f,
    ):
        save_file({"a": torch.zeros(1 << 20)}, f / "model.safetensors")
    with pytest.raises(SQFTError, match="the disk is full"), write_file(small_disk / "file") as file:
        file.write_bytes(bytes(2 << 20))
    assert [p.name for p in small_disk.iterdir()] == ["out"]
    assert (old / "old.txt").read_text() == "old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_the_error_of_a_full_device_is_recognized(tmp_path):
    with pytest.raises(SQFTError, match="the disk is full"), write_folder(tmp_path / "out"):
        Path("/dev/full").write_text("x" * 10000)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(OSError, match="denied") as raised, write_folder(tmp_path / "out"):
        raise OSError(errno.EACCES, "denied")
    assert raised.value.errno == errno.EACCES
