"""One identity for the whole project: the content, whatever size, inode and time of change say."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

import sqft_plugins
from sqft_plugins import identity
from sqft_plugins.identity import content_hash, file_hash, files_of, is_settled, state_of, while_unchanged

SECOND = 10**9


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model" / "weights.bin"
    file.parent.mkdir()
    file.write_bytes(b"old")
    return file


def age(monkeypatch, seconds: float = 10) -> None:
    """Lets time pass for the files that are there."""
    now = time.time_ns() + int(seconds * SECOND)
    monkeypatch.setattr(identity.time, "time_ns", lambda: now)


def swap(file: Path, content: bytes) -> None:
    """Other content under the same inode, size and time of change, as `tar` and `rsync --inplace -t` leave it."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    for field in ("st_ino", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field)


@pytest.mark.parametrize("aged", [False, True], ids=["young", "old"])
def test_a_swap_that_size_inode_and_time_do_not_show_is_seen(file, aged, monkeypatch):
    if aged:
        age(monkeypatch)
    before = file_hash(file), content_hash(file), content_hash(file.parent)
    swap(file, b"new")
    after = file_hash(file), content_hash(file), content_hash(file.parent)
    assert not set(before) & set(after)
    swap(file, b"old")
    assert (file_hash(file), content_hash(file), content_hash(file.parent)) == before


def test_a_file_that_was_only_touched_or_copied_is_the_same(file, tmp_path):
    before = content_hash(file.parent)
    os.utime(file, (1, 1))
    file.chmod(0o600)
    assert content_hash(file.parent) == before
    copy = tmp_path / "copy" / file.name
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert content_hash(copy.parent) == before


def test_a_file_is_read_again_only_after_a_change(file, monkeypatch):
    reads = []

    @while_unchanged
    def read(path):
        reads.append(path)
        return path.read_bytes()

    assert [read(file), read(file)] == [b"old", b"old"]
    assert len(reads) == 2  # young: a second write could leave the very same record
    age(monkeypatch)
    assert [read(file), read(file), read(file)] == [b"old"] * 3
    assert len(reads) == 3
    swap(file, b"new")
    assert read(file) == b"new"


def test_two_writes_within_one_tick_of_the_clock_are_told_apart(file, monkeypatch):
    """The kernel's record is the same before and after: the file is as old as its clock is coarse."""
    record = identity.record_of(file)
    monkeypatch.setattr(identity, "record_of", lambda path: record)
    before = file_hash(file)
    file.write_bytes(b"new")
    assert file_hash(file) != before


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file, monkeypatch):
    age(monkeypatch)

    @while_unchanged
    def read(path):
        content = path.read_bytes()
        swap(path, b"new")
        return content

    assert [read(file), read(file)] == [b"old", b"new"]


@pytest.mark.parametrize(
    ("changed", "now", "settled"),
    [
        (5 * SECOND + 4_000_000, 5 * SECOND + 5_000_000, False),  # a fine clock, a millisecond ago
        (5 * SECOND + 4_000_000, 6 * SECOND, True),
        (5 * SECOND, 6 * SECOND, False),  # whole seconds: such as ext3 or FAT
        (5 * SECOND, 8 * SECOND, True),
        (9 * SECOND, 5 * SECOND, False),  # written in the future: the clock was set back
    ],
)
def test_a_record_is_believed_once_it_is_older_than_a_tick_of_its_clock(changed, now, settled):
    assert is_settled(((1, 1, 1, 1, changed),), now) is settled


def test_a_folder_is_all_its_files_also_behind_links_and_no_hidden_ones(file, tmp_path):
    folder = file.parent
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mask.bin").write_bytes(b"mask")
    (folder / "sqft").symlink_to(outside)
    (folder / "ring").symlink_to(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_bytes(b"")
    assert [str(path.relative_to(folder)) for path in files_of(folder)] == ["sqft/mask.bin", "weights.bin"]
    before = content_hash(folder)
    (folder / ".cache" / "lock").write_bytes(b"held")
    (folder / "README.md").write_bytes(b"read by people alone")
    assert content_hash(folder) == before
    swap(outside / "mask.bin", b"ksam")
    assert content_hash(folder) != before


def test_names_count(file):
    before = content_hash(file.parent)
    file.rename(file.with_name("other.bin"))
    assert content_hash(file.parent) != before


def test_what_is_gone_is_an_error_not_a_memory(file, monkeypatch):
    age(monkeypatch)
    file_hash(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        file_hash(file)
    with pytest.raises(FileNotFoundError):
        state_of(file)


def test_no_other_part_of_the_project_tells_files_apart_by_their_times():
    root = Path(sqft_plugins.__file__).parents[1]
    packages = [root / name for name in ("sqft_plugins", "peft_ext", "gguf_ext", "vllm_ext")]
    found = {
        str(file.relative_to(root))
        for package in packages
        for file in package.rglob("*.py")
        if re.search(r"\bst_(mtime|ctime|ino|dev)\b|\bst_[mc]time_ns\b|getctime|getmtime", file.read_text())
    }
    assert found == {"sqft_plugins/identity.py", "sqft_plugins/report/read.py"}  # the latter orders rows by time


def test_a_recipe_knows_a_base_with_its_masks_and_an_adapter_without_its_planes(tmp_path):
    from sqft_plugins.recipe.run import _identity

    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for file in (model / "config.json", model / "sqft" / "mask.safetensors", adapter / "adapter_config.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"old")
    before = _identity(model), _identity(adapter)
    (adapter / "planes").mkdir()
    (adapter / "planes" / "r8.safetensors").write_bytes(b"plane")
    assert (_identity(model), _identity(adapter)) == before
    swap(model / "sqft" / "mask.safetensors", b"new")
    swap(adapter / "adapter_config.json", b"new")
    assert not {_identity(model), _identity(adapter)} & set(before)
