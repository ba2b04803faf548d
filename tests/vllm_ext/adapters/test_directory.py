"""What a directory serves, what it refuses, and the private copies."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers_adapters import MODULES, write_adapter, write_configuration
from safetensors.torch import load_file, save_file

from sqft_plugins.configurations import saved_configurations
from sqft_plugins.errors import CheckpointError, SQFTError
from vllm_ext.adapters.copies import AdapterCopies, BusyError, hold
from vllm_ext.adapters.directory import AdapterDirectory, UnknownAdapterError
from vllm_ext.adapters.folder import UnknownRankError, open_adapter, records
from vllm_ext.adapters.names import AdapterNameError

Q0, DOWN, Q1 = MODULES


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "adapters"
    write_adapter(root / "math")
    write_adapter(root / "plain", r=4, choices=None, peft_type="LORA")
    return root


# --- which ranks a folder offers ---


def test_every_offered_variant_has_its_ranks(root):
    write_configuration(root / "math", "searched", {".*": 8, "q_proj": 4})
    folder = open_adapter(root / "math")
    assert folder.variants == [None, "max", "heuristic", "min", "r8", "r6", "r4", "searched"]
    expected = {None: 6, "max": 8, "heuristic": 6, "median": 6, "min": 4, "r8": 8, "r6": 6, "r4": 4}
    for rank, number in expected.items():
        assert folder.ranks(rank) == dict.fromkeys(MODULES, number)
    assert folder.ranks("searched") == {Q0: 4, DOWN: 8, Q1: 4}
    assert folder.max_rank("searched") == 8


def test_a_saved_default_is_what_the_plain_name_means(root):
    write_configuration(root / "math", "default", {".*": 4})
    assert set(open_adapter(root / "math").ranks(None).values()) == {4}


@pytest.mark.parametrize(
    "rank", ["r5", "r0", "r64", "8", "@r8", "r08", "r008", "best", "R8", "maximum", "r8 ", "r" + "9" * 60]
)
def test_a_rank_that_is_not_offered_names_those_that_are(root, rank):
    with pytest.raises(UnknownRankError, match=r"adapter math is not served at .* use max, heuristic, min, r8, r6, r4"):
        open_adapter(root / "math").ranks(rank)


def test_an_adapter_with_a_fixed_rank_has_its_plain_name_only(root):
    folder = open_adapter(root / "plain")
    assert folder.variants == [None]
    assert folder.ranks(None) == dict.fromkeys(MODULES, 4)
    with pytest.raises(UnknownRankError, match="fixed rank: ask for plain"):
        folder.ranks("max")


def test_kinds_are_told_apart(root):
    write_adapter(root / "masked", sparse=True)
    write_adapter(root / "qa", sparse=True, quantization_aware=True)
    kinds = {name: open_adapter(root / name).kind for name in ("math", "plain", "masked", "qa")}
    assert kinds == {"math": "lora", "plain": "lora", "masked": "masked", "qa": "quantization-aware"}


def test_configurations_that_do_not_fit_are_errors_of_that_name_only(root):
    write_configuration(root / "math", "unknown", {"k_proj": 4})
    write_configuration(root / "math", "outside", {".*": 5})
    write_configuration(root / "math", "partial", {"q_proj": 4})
    write_configuration(root / "math", "max", {".*": 4})  # a rank's name is no configuration's
    file = write_configuration(root / "math", "broken", {})
    file.write_text('{"q_proj": ')
    folder = open_adapter(root / "math")
    assert "max" in folder.variants
    assert set(folder.ranks("max").values()) == {8}
    for name in ("unknown", "outside", "partial", "broken"):
        with pytest.raises(CheckpointError, match=name):
            folder.ranks(name)


# --- folders that are not whole ---


def damage(folder, how):
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    settings = json.loads(config.read_text())
    if how == "no weights":
        weights.unlink()
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "huge header":
        weights.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    elif how == "no JSON":
        config.write_text("{")
    elif how == "deep JSON":
        config.write_text("[" * 100_000)
    elif how == "no object":
        config.write_text("[]")
    elif how == "other type":
        config.write_text(json.dumps({**settings, "peft_type": "IA3"}))
    elif how == "rank":
        config.write_text(json.dumps({**settings, "r": "8"}))
    elif how == "choices":
        config.write_text(json.dumps({**settings, "rank_choices": [8, "six"]}))
    elif how == "another rank":
        config.write_text(json.dumps({**settings, "r": 16, "rank_choices": [16, 8]}))
    elif how == "more than pairs":
        save_file({**load_file(weights), "base_model.model.lm_head.weight": torch.ones(2, 2)}, weights)
    elif how == "half of a pair":
        write_adapter(folder, {Q0: (64, 64)})
        raw = weights.read_bytes().replace(b"lora_B.weight", b"lora_C.weight")
        weights.write_bytes(raw)


HARM = [
    "no weights", "cut off", "empty", "huge header", "no JSON", "deep JSON", "no object", "other type", "rank",
    "choices", "another rank", "half of a pair", "more than pairs",
]  # fmt: skip


@pytest.mark.parametrize("how", HARM)
def test_a_folder_that_is_not_whole_is_one_line_and_leaves_the_others(root, how):
    write_adapter(root / "bad")
    damage(root / "bad", how)
    directory = AdapterDirectory(root)
    with pytest.raises(CheckpointError, match="bad") as caught:
        directory.open("bad")
    assert "\n" not in str(caught.value)
    assert {name for name, _ in directory.folders()} == {"math", "plain"}
    with pytest.raises(CheckpointError):
        AdapterCopies(directory).take("bad")


def test_a_repaired_folder_is_served_at_once(root):
    write_adapter(root / "bad")
    damage(root / "bad", "cut off")
    directory = AdapterDirectory(root)
    with pytest.raises(CheckpointError):
        directory.open("bad")
    write_adapter(root / "bad")
    assert directory.open("bad").kind == "lora"


def test_a_folder_that_may_not_be_read_is_one_line_and_leaves_the_others(root, monkeypatch):
    write_adapter(root / "bad")

    def forbidden(folder):
        if folder.name == "bad":
            raise PermissionError(13, "Permission denied")
        return saved_configurations(folder)

    monkeypatch.setattr("vllm_ext.adapters.directory.saved_configurations", forbidden)
    directory = AdapterDirectory(root)
    assert list(directory) == ["math", "plain"]
    with pytest.raises(CheckpointError, match="adapter bad cannot be read: Permission denied"):
        directory.open("bad")


def test_a_directory_that_goes_away_serves_nothing_until_it_is_back(root, tmp_path):
    directory = AdapterDirectory(root)
    root.rename(tmp_path / "elsewhere")
    assert list(directory.folders()) == []
    with pytest.raises(UnknownAdapterError):
        directory.open("math")
    (tmp_path / "elsewhere").rename(root)
    assert list(directory) == ["math", "plain"]


def test_what_is_no_adapter_costs_no_search_for_its_nearest_name(root, monkeypatch):
    (root / "README").write_text("")
    (root / "checkpoint").mkdir()
    monkeypatch.setattr("vllm_ext.adapters.directory.nearest", None)
    assert list(AdapterDirectory(root)) == ["math", "plain"]


def test_an_adapter_may_be_opened_while_another_one_is(root, monkeypatch):
    directory = AdapterDirectory(root)
    directory.open("plain")
    is_dir = Path.is_dir

    def another_thread_opens(path):
        directory._opened[f"other{len(directory._opened)}"] = ((), CheckpointError("other"))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", another_thread_opens)
    assert directory.open("math").path.name == "math"


# --- nothing outside ---


def test_links_out_of_the_directory_are_not_followed(root, tmp_path):
    secret = write_adapter(tmp_path / "secret")
    (root / "folder").symlink_to(secret)
    (root / "ring").symlink_to(root / "ring")
    (root / "up").symlink_to(root)
    (root / "file").mkdir()
    shutil.copy(secret / "adapter_config.json", root / "file")
    (root / "file" / "adapter_model.safetensors").symlink_to(secret / "adapter_model.safetensors")
    write_adapter(root / "configured")
    write_configuration(secret, "searched", {".*": 4})
    (root / "configured" / "configurations").symlink_to(secret / "configurations")
    directory = AdapterDirectory(root)
    assert list(directory) == ["math", "plain"]
    for name in ("folder", "ring", "up", "file", "configured"):
        with pytest.raises(UnknownAdapterError):
            directory.open(name)


def test_a_link_within_the_directory_is_another_name(root):
    (root / "alias").symlink_to(root / "math")
    assert AdapterDirectory(root).open("alias").modules == open_adapter(root / "math").modules


@pytest.mark.parametrize("name", ["../secret", "/tmp", "math/../../secret", "..", ".", "math@max"])
def test_a_path_is_no_name(root, tmp_path, name):
    write_adapter(tmp_path / "secret")
    with pytest.raises(SQFTError):
        AdapterDirectory(root).find(name)


@pytest.mark.parametrize("name", ["text", "image", "gemma-50", "my math", "math@r8", "mäth", "-rf"])
def test_an_adapter_whose_name_cannot_be_served_is_told_by_name_and_never_served(root, name):
    write_adapter(root / name)
    directory = AdapterDirectory(root, served=["gemma-50"])
    with pytest.raises(AdapterNameError, match=rf"^adapter .* in {root} cannot be served: .*rename it") as caught:
        directory.check_names()
    assert ascii(name) in str(caught.value)
    assert list(directory) == ["math", "plain"]
    with pytest.raises(AdapterNameError):
        directory.open(name)


def test_hidden_folders_and_those_without_an_adapter_are_nobodys_names(root):
    write_adapter(root / ".math.new")
    (root / "text").mkdir()
    (root / "lost+found").mkdir()
    AdapterDirectory(root).check_names()
    with pytest.raises(UnknownAdapterError):
        AdapterDirectory(root).open("text")


@pytest.mark.parametrize("name", ["Math", "MATH", "math."])
def test_where_case_does_not_count_an_adapter_has_its_own_name_only(root, name):
    (root / name).symlink_to(root / "math")  # stands for a file system on which this is another name of that folder
    directory = AdapterDirectory(root)
    entries = directory._entries
    directory._entries = lambda: [entry for entry in entries() if entry != name]
    with pytest.raises(UnknownAdapterError):
        directory.open(name)
    assert directory.open("math").path.name == "math"


def test_an_unknown_name_names_the_nearest(root):
    with pytest.raises(UnknownAdapterError, match="did you mean 'math'"):
        AdapterDirectory(root).open("mathe")


def test_a_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(SQFTError, match="SQFT_ADAPTERS_DIR"):
        AdapterDirectory(tmp_path / "none")


# --- adapters come and go ---


def test_the_signature_changes_with_every_file_and_is_none_when_the_folder_is_gone(root):
    directory = AdapterDirectory(root)
    seen = {directory.signature("math")}
    write_configuration(root / "math", "searched", {".*": 4})
    seen.add(directory.signature("math"))
    write_adapter(root / "math", seed=1)
    seen.add(directory.signature("math"))
    assert len(seen) == 3
    shutil.rmtree(root / "math")
    assert directory.signature("math") is None


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
    before = (first.folder.path / "adapter_model.safetensors").read_bytes()
    write_adapter(root / "math", seed=1)
    second, _ = copies.take("math")
    assert second.folder.path != first.folder.path
    assert second.folder.source == root / "math"
    shutil.rmtree(root / "math")
    assert (first.folder.path / "adapter_model.safetensors").read_bytes() == before
    assert open_adapter(first.folder.path).ranks("searched") == dict.fromkeys(MODULES, 4)
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
    names = [copies.take(name)[0].folder.path.name for name in ("math", "alias", "math", "alias")]
    assert names == ["math", "alias", "math", "alias"]


def test_a_copy_that_was_tidied_away_in_part_is_made_again(root, copies):
    copy = copies.take("math")[0]
    (copy.folder.path / "adapter_config.json").unlink()
    assert not copies.is_whole(copy)
    again = copies.take("math")[0]
    assert again.folder.modules == open_adapter(root / "math").modules
    assert copies.of(again.folder.path) is again


def test_a_place_for_copies_that_is_none_is_told_with_its_variable(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SQFT_ADAPTER_COPIES", str(tmp_path / "nowhere"))
    with pytest.raises(SQFTError, match=r"nowhere \(No such file or directory\): let SQFT_ADAPTER_COPIES name"):
        AdapterCopies(AdapterDirectory(root)).take("math")


class Holder:
    """Stands for a request."""


def test_a_copy_goes_when_nobody_holds_it_and_no_sooner(root, copies):
    held, other = Holder(), Holder()
    path = copies.take("math")[0].folder.path
    for holder in (held, other):
        hold(holder, copies.take("math")[0])
    write_adapter(root / "math", seed=1)
    newer = copies.take("math")[0]  # of the older one only the holders know
    del held, holder
    time.sleep(0.3)
    assert path.is_dir()
    del other
    assert _goes(path)
    assert newer.folder.path.is_dir()


def test_a_copy_that_is_asked_for_again_while_it_lingers_stays(root, copies):
    copies.linger_seconds = 0.4
    path = copies.take("math")[0].folder.path
    again = copies.take("math")[0]
    assert again.folder.path == path
    time.sleep(0.8)
    assert path.is_dir()
    del again
    assert _goes(path)


def _goes(path: Path) -> bool:
    for _ in range(100):
        if not path.exists():
            return True
        time.sleep(0.05)
    return False


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
    assert (copy.folder.path / "adapter_model.safetensors").read_bytes() == weights
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
    assert copies.take("math", served=False)[0].folder.modules  # whole, as far as anybody can see


def test_an_adapter_that_is_gone_for_a_moment_is_waited_for(root, copies):
    copies.gone_seconds = 5.0
    copies.take("math")
    shutil.move(root / "math", root / ".aside")
    threading.Timer(0.3, shutil.move, (root / ".aside", root / "math")).start()
    assert copies.take("math")[0].folder.modules
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
