"""What is refused before a byte is written."""

from __future__ import annotations

import os

import pytest
import torch
from helpers_gguf import rewritten
from helpers_merge import COLUMNS, ROWS, write_file

from gguf_ext.errors import AdapterError, DamagedFileError, GGUFError, TargetExistsError
from gguf_ext.merge import check_merge, merge_file, merged_target
from gguf_ext.reader import GGUFFile

NOTE = {"adapter": "adapters/mine", "adapter_hash": "a" * 64}


@pytest.fixture
def file(tmp_path):
    return GGUFFile(write_file(tmp_path / "base.gguf"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Q4_K", "codebook"], "tensor codebook is IQ2_XXS, a codebook, which is no grid: leave its module out"),
        (["first.norm"], "tensor first.norm is F32, of floats, which is no grid"),
        (["blk.0.attn_q.weight"], "has no tensor blk.0.attn_q.weight"),
        ([], "no tensor of .* gets other codes"),
    ],
)
def test_tensors_that_cannot_be_merged_into(file, tmp_path, names, words):
    with pytest.raises(GGUFError, match=words):
        check_merge(file, tmp_path / "out.gguf", names, NOTE)


def test_the_model_itself_is_never_a_target(file, tmp_path):
    os.link(file.path, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(file.path)
    for name in ("base.gguf", "hard.gguf", "soft.gguf"):
        with pytest.raises(GGUFError, match="is the model itself, which is never written to"):
            check_merge(file, tmp_path / name, ["Q4_K"], NOTE, overwrite=True)


def test_parts_are_no_target_either(tmp_path):
    write_file(tmp_path / "base.gguf", split_max_tensors=4)
    first = next(path for path in sorted(tmp_path.iterdir()) if "00001" in path.name)
    file = GGUFFile(first)
    for name in ("base.gguf", first.name):
        with pytest.raises(GGUFError, match="is the model itself"):
            check_merge(file, tmp_path / name, ["Q4_K"], NOTE, overwrite=True)
    (tmp_path / "elsewhere").mkdir()
    found = check_merge(file, tmp_path / "elsewhere" / "base.gguf", ["Q4_K"], NOTE, overwrite=True)
    assert merged_target(file, found).name == first.name


def test_what_is_there_is_replaced_on_request_alone(file, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(TargetExistsError, match=r"out\.gguf exists: choose another path, or replace it"):
        check_merge(file, tmp_path / "out.gguf", ["Q4_K"], NOTE)
    assert check_merge(file, tmp_path / "out.gguf", ["Q4_K"], NOTE, overwrite=True) == tmp_path / "out.gguf"


def test_the_same_adapter_is_not_merged_twice(file, tmp_path):
    codes = {"Q4_K": torch.zeros(ROWS, COLUMNS, dtype=torch.uint8)}
    merge_file(file, tmp_path / "out.gguf", codes, NOTE)
    merged = GGUFFile(tmp_path / "out.gguf")
    with pytest.raises(AdapterError, match=r"adapter adapters/mine is in .*out\.gguf already"):
        check_merge(merged, tmp_path / "again.gguf", ["Q4_K"], NOTE)
    check_merge(merged, tmp_path / "again.gguf", ["Q4_K"], {**NOTE, "adapter_hash": "b" * 64})
    check_merge(merged, tmp_path / "again.gguf", ["Q4_K"], {"adapter": "without a hash"})


@pytest.mark.parametrize("value", [(["no JSON"], "strings"), (["[1]"], "strings"), (3, "uint32")])
def test_notes_that_are_none_are_named(llama_int4, tmp_path, value):
    from gguf_ext import export_gguf

    export_gguf(llama_int4, tmp_path / "m.gguf")
    file = GGUFFile(rewritten(tmp_path / "m.gguf", tmp_path / "odd.gguf", {"sqft.merges": value}))
    with pytest.raises(DamagedFileError, match=r"sqft\.merges does not hold the notes of merges"):
        check_merge(file, tmp_path / "out.gguf", ["blk.0.attn_q.weight"], NOTE)


def test_a_file_that_is_cut_off_is_refused(file, tmp_path):
    whole = file.path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match=r"cut\.gguf"):
        merge_file(tmp_path / "cut.gguf", tmp_path / "out.gguf", {"Q4_K": torch.zeros(1, 1)}, NOTE)
    assert not (tmp_path / "out.gguf").exists()
