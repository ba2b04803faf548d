"""Folders written in the shards of their source, with the files beside the weights."""

from __future__ import annotations

import os
import shutil

import torch

from sqft_plugins.checkpoint import ModelFolder, copy_side_files, load_model, load_tokenizer
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder


def test_a_sharded_source_stays_sharded(tiny_llama, tmp_path):
    load_model(tiny_llama).save_pretrained(tmp_path / "source", max_shard_size="100KB")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "source")
    source = ModelFolder(tmp_path / "source")
    assert len(set(source.files.values())) > 2
    prune_folder(source.path, tmp_path / "pruned", method="magnitude")
    assert len(set(ModelFolder(tmp_path / "pruned").files.values())) > 2
    quantize_folder(tmp_path / "pruned", tmp_path / "int4")
    folder = ModelFolder(tmp_path / "int4")
    assert {f.name for f in folder.files.values()} == {f.name for f in ModelFolder(tmp_path / "pruned").files.values()}
    quantize_folder(tiny_llama, tmp_path / "single")
    model, other = load_model(folder.path), load_model(tmp_path / "single")
    names = dict(model.named_parameters())
    assert names.keys() == dict(other.named_parameters()).keys()
    for module in folder.int4.modules:
        assert torch.equal(names[f"{module}.weight"], folder.weight(module))


def test_side_files_come_along_but_no_other_weights(pruned, tmp_path):
    source = shutil.copytree(pruned, tmp_path / "source")
    for name in (
        "LICENSE",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "extra/a.txt",
        "extra/b.bin",
        ".git/x",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    (tmp_path / "target").mkdir()
    copy_side_files(ModelFolder(source), tmp_path / "target")
    copied = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert copied == {"LICENSE", "README.md", "extra/a.txt", "generation_config.json", *tokenizer}


def test_links_that_lead_nowhere_or_upwards_stay_behind(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    (source / "extra").mkdir()
    (source / "extra" / "a.txt").write_text("x")
    for link, target in (
        ("gone", "no-such-file"),
        ("self", "."),
        ("extra/up", "../.."),
        ("extra/gone", "none"),
        ("round", "round"),
    ):
        (source / link).symlink_to(target)
    (source / "LICENSE").symlink_to("extra/a.txt")  # as in the hub's cache, where every file is a link
    (source / "notes").symlink_to("extra")
    os.mkfifo(source / "pipe")
    (tmp_path / "target").mkdir()
    copy_side_files(ModelFolder(source), tmp_path / "target")
    copied = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    assert copied - {file.name for file in tiny_llama.iterdir()} == {"LICENSE", "extra/a.txt", "notes/a.txt"}
