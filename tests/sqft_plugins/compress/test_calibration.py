"""Calibration text and tokens."""

from __future__ import annotations

import json
import re

import pytest
import torch

from sqft_plugins.checkpoint import load_tokenizer
from sqft_plugins.compress.calibration import (
    builtin_text,
    calibration_texts,
    dataset_texts,
    read_texts,
    token_batch,
)
from sqft_plugins.errors import SQFTError


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
    with pytest.raises(SQFTError, match="--calibration org/words is not a file: give a text file"):
        calibration_texts("org/words")  # a folder here is no data set on the hub
    texts = dataset_texts("org/words")
    assert [next(texts) for _ in range(3)] == ["text 0", "text 1", "text 2"]
    assert list(dataset_texts("org/words::test")) == ["held out"]
