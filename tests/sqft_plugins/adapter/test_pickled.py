"""A pickle of an adapter: tensors alone, and no more of them than the file has bytes."""

from __future__ import annotations

import os
import zipfile

import pytest
import torch

from sqft_plugins.adapter.pickled import read_pickled
from sqft_plugins.errors import CheckpointError


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def compressed(file, place) -> None:
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))


def test_tensors_by_name_are_read(tmp_path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16).t()}
    for new in (True, False):
        torch.save(tensors, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=new)
        found = read_pickled(tmp_path / "adapter_model.bin", "x", "copy it")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found.get_tensor(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Code()}, "no file of tensors alone"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({1: torch.ones(2)}, "holds no tensors by name"),
        ({"a": torch.ones(1).expand(10**12)}, "a of adapter_model.bin is not stored number by number"),
        ({"a": torch.ones(10**9, device="meta")}, "a of adapter_model.bin is not stored number by number"),
        ({"a": torch.eye(4).to_sparse()}, "a of adapter_model.bin is not stored number by number"),
    ],
)
def test_what_is_no_tensor_or_grows_in_memory_is_refused(content, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "adapter_model.bin")
    with pytest.raises(CheckpointError, match=message):
        read_pickled(tmp_path / "adapter_model.bin", "x", "copy it")
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_before_it_grows(tmp_path) -> None:
    """torch reads a compressed archive, 4 MB of 5 kB here."""
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.bin")
    compressed(tmp_path / "plain.bin", tmp_path / "adapter_model.bin")
    assert torch.load(tmp_path / "adapter_model.bin", weights_only=True)["a"].shape == (1_000_000,)
    with pytest.raises(CheckpointError, match="it is compressed"):
        read_pickled(tmp_path / "adapter_model.bin", "x", "copy it")
