"""Value planes that earlier versions wrote: read, found by a server, refused where newer. No vLLM needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sample_content import tensors_in

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError
from vllm_ext.adapters.folder import open_adapter
from vllm_ext.planes import store
from vllm_ext.planes.format import KEY, PlaneFile
from vllm_ext.variables import PLANE_DIR

PAIRS = [("adapter-qa", "int4", "merged-qa", "float"), ("adapter-qa-int4", "int4-asymmetric", "merged-qa-int4", "int4")]


@pytest.mark.parametrize(("adapter", "int4", "merged", "kind"), PAIRS)
def test_a_plane_holds_the_codes_of_the_merged_folder(samples: Path, adapter, int4, merged, kind) -> None:
    expected = json.loads((samples / "expected.json").read_text())["planes"]
    for file in (samples / adapter / "planes").iterdir():
        assert tensors_in(file) == expected[f"{adapter}/planes/{file.name}"]
    plane, folder = PlaneFile(samples / adapter / "planes/r3.safetensors"), ModelFolder(merged)
    assert set(plane.stamp.ranks.values()) == {3}
    for module in plane.modules:
        assert torch.equal(plane.codes(module, ModelFolder(int4)), folder.quantized(module).codes), module


@pytest.mark.parametrize(("adapter", "int4", "merged", "kind"), PAIRS)
def test_a_server_finds_the_plane_and_builds_none(samples: Path, monkeypatch, adapter, int4, merged, kind) -> None:
    monkeypatch.setenv(PLANE_DIR, str(samples / "store"))
    monkeypatch.setattr(store, "_build", None)
    exported = PlaneFile(samples / adapter / "planes/r4.safetensors")
    found = store.find_plane(ModelFolder(int4), samples / adapter, exported.stamp.ranks, kind)
    assert found.path.read_bytes() == exported.path.read_bytes()


def test_a_server_reads_adapters_and_their_configurations(samples: Path) -> None:
    searched, plain = open_adapter(samples / "adapter-searched"), open_adapter(samples / "extracted-dense")
    ranks = json.loads((samples / "search/configuration.json").read_text())
    assert (searched.kind, searched.rank_choices, searched.ranks("searched")) == ("masked", [4, 3, 2], ranks)
    assert (plain.kind, plain.rank_choices, set(plain.ranks(None).values())) == ("dense", [3], {3})


def test_a_newer_plane_is_refused_with_the_remedy(samples: Path) -> None:
    file = samples / "adapter-qa/planes/r3.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as handle:
        stamp = json.loads(handle.metadata()[KEY])
    save_file(tensors, file, metadata={KEY: json.dumps({**stamp, "version": stamp["version"] + 1})})
    with pytest.raises(CheckpointError, match=r"r3.safetensors is a plane of version \d, .* up to \d: upgrade"):
        _ = PlaneFile(file).stamp
