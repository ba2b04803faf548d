"""Finding the layers, and calibration text and tokens, on tiny models."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.compress.calibration import (
    builtin_text,
    calibration_texts,
    dataset_texts,
    read_texts,
    token_batch,
)
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import (
    find_blocks,
    find_linears,
    set_weight,
    structure_of,
    structure_of_folder,
    weight_of,
)

KINDS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


# --- finding ---


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_all_linears_of_the_blocks_and_no_others(tiny_model, family):
    found = find_linears(tiny_model(family))
    assert sorted(found) == sorted(f"model.layers.{block}.{kind}" for block in range(2) for kind in KINDS)


def test_structure_of_a_folder_needs_no_weights(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    structure = structure_of_folder(tmp_path)
    assert structure.blocks == "model.layers"
    assert structure.shapes["model.layers.1.mlp.down_proj"] == (64, 128)
    assert structure.outside == ["lm_head"]
    assert structure.kind("model.layers.1.mlp.down_proj") == "mlp.down_proj"
    assert structure.block("model.layers.1.mlp.down_proj") == 1
    assert structure == structure_of(load_model(tiny_llama))


def test_the_transposed_linears_of_gpt2_are_out_in(tiny_model):
    model = tiny_model("gpt2")
    structure = structure_of(model)
    assert structure.blocks == "transformer.h"
    assert structure.shapes["transformer.h.0.attn.c_attn"] == (192, 64)
    assert structure.transposed == set(structure.shapes)
    linear = find_linears(model)["transformer.h.1.mlp.c_fc"]
    assert torch.equal(weight_of(linear), linear.weight.T)
    set_weight(linear, torch.arange(256.0)[:, None] + torch.zeros(256, 64))
    assert torch.equal(linear.weight[5], torch.arange(256.0))


def test_every_family_has_its_linears(tiny_model, family):
    structure = structure_of(tiny_model(family))
    assert structure.length == 2
    assert "lm_head" not in structure.shapes
    for name, (rows, columns) in structure.shapes.items():
        weight = tiny_model(family).get_parameter(f"{name}.weight")
        assert weight.shape == ((columns, rows) if name in structure.transposed else (rows, columns))


class Block(nn.Module):
    def __init__(self, experts: int = 0):
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))


def test_a_list_inside_a_block_does_not_compete():
    model = nn.Module()
    model.layers = nn.ModuleList(Block(experts=5) for _ in range(2))
    model.short = nn.ModuleList([nn.Linear(8, 8)])
    assert find_blocks(model)[0] == "layers"
    assert len(find_linears(model)) == 12


def test_a_weight_shared_with_the_outside_is_left_out():
    model = nn.Module()
    model.layers = nn.ModuleList(Block() for _ in range(2))
    model.head = nn.Linear(8, 8)
    model.head.weight = model.layers[1].up.weight
    assert list(find_linears(model)) == ["layers.0.up"]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(SQFTError, match="has no list of equal blocks"):
        find_linears(nn.Sequential(nn.Linear(4, 4)))


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(SQFTError, match="no language model that transformers knows"):
        structure_of_folder(tmp_path)


# --- calibration ---


def test_builtin_splits_share_no_paragraph_and_are_large():
    train, heldout = builtin_text("train"), builtin_text("heldout")
    assert train == builtin_text("train")

    def paragraphs(texts):
        return {" ".join(p.split()) for text in texts for p in re.split(r"\n\s*\n", text.strip("\n"))}

    assert not paragraphs(train) & paragraphs(heldout)
    assert sum(map(len, train)) > 200_000
    assert sum(map(len, heldout)) > 20_000


def test_batch_is_spread_over_the_text_and_begins_with_bos(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    texts = builtin_text("train")
    batch = token_batch(texts, tokenizer, 8, 16)
    assert batch.shape == (8, 16)
    assert batch.dtype == torch.int64
    assert batch[:, 0].tolist() == [tokenizer.bos_token_id] * 8
    assert not bool((batch[:, 1:] == tokenizer.bos_token_id).any())
    assert torch.equal(batch, token_batch(texts, tokenizer, 8, 16))
    first = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert batch[0, 1:].tolist() == first[:15]
    assert len(set(map(tuple, batch.tolist()))) == 8

    tokenizer.bos_token = None
    assert token_batch(texts, tokenizer, 2, 16)[0].tolist() == first[:16]


def test_too_little_text_is_refused(tiny_llama):
    with pytest.raises(SQFTError, match=r"has \d+ tokens but sequences=32 of length=128 need 4064"):
        token_batch(["a few words"], load_tokenizer(tiny_llama))
    with pytest.raises(SQFTError, match="are no calibration batch"):
        token_batch(["a few words"], load_tokenizer(tiny_llama), sequences=0)


def test_texts_of_files(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("two\n\nparagraphs")
    assert read_texts(plain) == ["two\n\nparagraphs"]
    lines.write_text('{"text": "a\\u2028b"}\n\n{"prompt": "1+1=", "completion": "2"}\r\n')
    assert read_texts(lines) == ["a\u2028b", "1+1=2"]
    assert calibration_texts(lines) == read_texts(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"question": "x"}\n', r"line 3 has neither `text` nor"),
        ("a.jsonl", b"[1]\n", r"line 1 has neither"),
        ("a.jsonl", b"", r"holds no text"),
        ("a.txt", b" \n ", r"holds no text"),
        ("a.txt", b"\xff\xfe", r"is not UTF-8"),
    ],
)
def test_broken_calibration_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SQFTError, match=message):
        read_texts(tmp_path / name)


def test_a_missing_calibration_file(tmp_path):
    with pytest.raises(SQFTError, match=r"--calibration .* is not a file"):
        read_texts(tmp_path / "none.txt")


def test_records_of_the_usual_kinds_are_texts(tmp_path):
    file = tmp_path / "list.json"
    records = [{"question": "1+1?", "answer": "2"}, {"instruction": "Say yes.", "input": "", "output": "yes"}]
    file.write_text(json.dumps(records))
    assert read_texts(file) == ["1+1?\n2", "Say yes.\nyes"]
    file.write_text(json.dumps([*records, {"body": "x"}]))
    with pytest.raises(SQFTError, match=r"list\.json record 3 has neither `text`"):
        read_texts(file)


def test_a_data_set_is_read_by_name_as_far_as_it_is_needed(tmp_path, monkeypatch):
    """A folder `org/name` is a data set for `datasets` as one on the hub is; nothing here reaches the hub."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "words"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)))
    (folder / "test.jsonl").write_text(json.dumps({"text": "held out"}) + "\n")
    monkeypatch.chdir(folder)  # "org/words" is then no path from here, so it is taken for a name
    with pytest.raises(SQFTError, match="--calibration org/words is neither a file nor a data set that can be read"):
        list(calibration_texts("org/words"))
    monkeypatch.chdir(tmp_path)
    texts = dataset_texts("org/words")
    assert [next(texts) for _ in range(3)] == ["text 0", "text 1", "text 2"]
    assert list(dataset_texts("org/words::test")) == ["held out"]
