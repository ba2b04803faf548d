"""What a directory serves, and what it refuses: folders that are not whole, and all that lies outside."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers_adapters import Q0, write_adapter, write_configuration
from safetensors.torch import load_file, save_file

from sqft_plugins.configurations import saved_configurations
from sqft_plugins.errors import CheckpointError, SQFTError
from vllm_ext.adapters.copies import AdapterCopies
from vllm_ext.adapters.directory import AdapterDirectory, UnknownAdapterError
from vllm_ext.adapters.folder import open_adapter
from vllm_ext.adapters.names import AdapterNameError

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
    assert directory.open("bad").kind == "dense"


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


def test_adapters_may_be_opened_by_several_threads(root):
    directory, names = AdapterDirectory(root), [f"other{number}" for number in range(20)]
    for name in names:
        write_adapter(root / name)
    with ThreadPoolExecutor(8) as pool:
        assert [folder.path.name for folder in pool.map(directory.open, names * 5)] == names * 5


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


def test_what_is_no_part_of_an_adapter_is_not_looked_into(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "math" / "data").symlink_to(tmp_path / "elsewhere")
    (root / "math" / "checkpoint-1").mkdir()
    time.sleep(0.2)  # until a later writing must show
    first = AdapterDirectory(root).open("math")
    (tmp_path / "elsewhere" / "file").write_text("")
    (root / "math" / "checkpoint-1" / "file").write_text("")
    assert AdapterDirectory(root).open("math") is first
    write_configuration(root / "math", "searched", {".*": 4})
    assert AdapterDirectory(root).open("math") is not first


def test_a_link_within_the_directory_is_another_name(root):
    (root / "alias").symlink_to(root / "math")
    assert AdapterDirectory(root).open("alias").pairs == open_adapter(root / "math").pairs


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
