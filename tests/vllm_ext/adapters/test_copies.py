"""The private copies of the versions that are served."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest
from helpers_adapters import MODULES, write_adapter, write_configuration
from helpers_waiting import goes

from sqft_plugins.errors import CheckpointError, SQFTError
from vllm_ext.adapters.copies import AdapterCopies, BusyError, hold
from vllm_ext.adapters.directory import AdapterDirectory, UnknownAdapterError
from vllm_ext.adapters.folder import open_adapter, records


@pytest.fixture
def copies(root):
    """Of the adapters in `root`, without waiting for writers."""
    made = AdapterCopies(AdapterDirectory(root))
    made.quiet_seconds = made.linger_seconds = 0.0
    made.patience_seconds = made.gone_seconds = 0.3
    return made


def test_a_copy_outlives_its_folder_and_a_changed_folder_gets_another(root, copies):
    write_configuration(root / "math", "searched", {".*": 4})
    first, _ = copies.take("math")
    assert copies.take("math")[0] is first
    before = (first.path / "adapter_model.safetensors").read_bytes()
    write_adapter(root / "math", seed=1)
    second, _ = copies.take("math")
    assert second.path != first.path
    assert second.source == root / "math"
    shutil.rmtree(root / "math")
    assert (first.path / "adapter_model.safetensors").read_bytes() == before
    assert open_adapter(first.path).ranks("searched") == dict.fromkeys(MODULES, 4)
    with pytest.raises(UnknownAdapterError):
        copies.take("math")


def test_a_folder_that_was_only_touched_has_the_same_copy(root, copies):
    first, before = copies.take("math")
    (root / "math" / "README.md").write_text("new")
    second, after = copies.take("math")
    assert second is first
    assert before != after == records(root / "math")


def test_two_names_of_one_folder_have_copies_of_their_own(root, copies):
    (root / "alias").symlink_to(root / "math")
    names = [copies.take(name)[0].path.name for name in ("math", "alias", "math", "alias")]
    assert names == ["math", "alias", "math", "alias"]


def test_a_copy_that_was_tidied_away_in_part_is_made_again(root, copies):
    copy = copies.take("math")[0]
    (copy.path / "adapter_config.json").unlink()
    assert not copy.is_whole
    again = copies.take("math")[0]
    assert again.pairs == open_adapter(root / "math").pairs
    assert again.is_whole
    assert copies.take("math")[0] is again


def test_a_place_for_copies_that_is_none_is_told_with_its_variable(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SQFT_ADAPTER_COPIES", str(tmp_path / "nowhere"))
    with pytest.raises(SQFTError, match=r"nowhere \(No such file or directory\): let SQFT_ADAPTER_COPIES name"):
        AdapterCopies(AdapterDirectory(root)).take("math")


class Holder:
    """Stands for a request."""


def test_a_copy_goes_when_nobody_holds_it_and_no_sooner(root, copies):
    held, other = Holder(), Holder()
    path = copies.take("math")[0].path
    for holder in (held, other):
        hold(holder, copies.take("math")[0])
    write_adapter(root / "math", seed=1)
    newer = copies.take("math")[0]  # of the older one only the holders know
    del held, holder
    time.sleep(0.3)
    assert path.is_dir()
    del other
    assert goes(path)
    assert newer.path.is_dir()


def test_a_copy_that_is_asked_for_again_while_it_lingers_stays(root, copies):
    copies.linger_seconds = 0.4
    path = copies.take("math")[0].path
    again = copies.take("math")[0]
    assert again.path == path
    time.sleep(0.8)
    assert path.is_dir()
    del again
    assert goes(path)


def test_a_folder_that_is_being_written_to_is_waited_for(root, copies):
    copies.quiet_seconds, copies.patience_seconds = 0.4, 5.0
    mixed = write_adapter(root / "math", seed=7, lora_alpha=99)  # one file after the other, as rsync does
    weights = (mixed / "adapter_model.safetensors").read_bytes()
    write_adapter(root / "math", seed=8, lora_alpha=99)

    def writes():
        time.sleep(0.2)
        (mixed / "new").write_bytes(weights)
        os.replace(mixed / "new", mixed / "adapter_model.safetensors")

    writer = threading.Thread(target=writes)
    writer.start()
    copy, found = copies.take("math")
    writer.join()
    assert (copy.path / "adapter_model.safetensors").read_bytes() == weights
    assert found == records(root / "math")


def test_a_folder_that_is_written_to_for_ever_is_told_where_an_older_version_can_answer(root, copies):
    copies.quiet_seconds = 5.0
    write_adapter(root / "math", seed=3)
    with pytest.raises(BusyError, match="adapter math is being written to"):
        copies.take("math", served=True)
    begun = time.monotonic()
    with pytest.raises(BusyError):
        copies.take("math", served=True)
    assert time.monotonic() - begun < 0.2  # nobody waits a second time
    assert copies.take("math", served=False)[0].pairs  # whole, as far as anybody can see


def test_an_adapter_that_is_gone_for_a_moment_is_waited_for(root, copies):
    copies.gone_seconds = 5.0
    copies.take("math")
    shutil.move(root / "math", root / ".aside")
    threading.Timer(0.3, shutil.move, (root / ".aside", root / "math")).start()
    assert copies.take("math")[0].pairs
    begun = time.monotonic()
    with pytest.raises(UnknownAdapterError):
        copies.take("never")
    assert time.monotonic() - begun < 1.0


def test_a_folder_that_changes_under_every_copy_is_refused(root, copies, monkeypatch):
    original = shutil.copyfile

    def writes_meanwhile(source, target):
        write_adapter(root / "math", seed=2)
        return original(source, target)

    monkeypatch.setattr(shutil, "copyfile", writes_meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        copies.take("math")
    assert not [entry for entry in copies.root.iterdir() if entry.name.startswith(".")]
