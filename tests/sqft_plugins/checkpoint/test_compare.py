"""`sqft verify FOLDER MERGED`: codes may differ, and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers_foreign import FOREIGN, write_foreign
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.compare import compare_folders
from sqft_plugins.checkpoint.recode import Recoded, write_codes
from sqft_plugins.errors import SQFTError

pytestmark = pytest.mark.once
MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(params=FOREIGN)
def merged(request, tiny_llama, tmp_path):
    """(a folder, the same with three codes of a module moved)."""
    write_foreign(tiny_llama, tmp_path / "base", request.param)
    base = ModelFolder(tmp_path / "base")
    codes = base.quantized(MODULE).codes.clone()
    codes[:3, 5] = codes[:3, 5] ^ 1
    (tmp_path / "merged").mkdir()
    write_codes(Recoded(base, {MODULE: codes}), tmp_path / "merged", None)
    return tmp_path / "base", tmp_path / "merged"


def test_codes_alone_differ(merged) -> None:
    report = compare_folders(*merged)
    assert report.ok
    assert (report.recoded, report.equal) == (1, report.tensors - 1)
    assert 1 <= report.changed <= 3  # two codes of FP8 and FP4 are 0
    assert report.weights == ModelFolder(merged[0]).quantized(MODULE).codes.numel()


@pytest.fixture
def pair(tiny_llama, tmp_path):
    write_foreign(tiny_llama, tmp_path / "base", "awq")
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    return tmp_path / "base", tmp_path / "other"


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("scales", lambda tensor: tensor * 2, "differs, and is none of the codes"),
        ("qzeros", lambda tensor: tensor + 1, "differs, and is none of the codes"),
        ("qweight", lambda tensor: tensor[:, :-1].contiguous(), "has another dtype or shape"),
        ("qweight", lambda tensor: tensor.view(torch.float32), "has another dtype or shape"),
        ("scales", lambda tensor: None, "is in the base only"),
    ],
)
def test_what_is_no_code_and_differs_is_named(pair, part, change, what) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors[f"{MODULE}.{part}"] = change(tensors[f"{MODULE}.{part}"])
    save_file({name: own for name, own in tensors.items() if own is not None}, pair[1] / "model.safetensors")
    report = compare_folders(*pair)
    assert not report.ok
    assert report.differences == {f"{MODULE}.{part}": what}


def test_files_beside_the_weights_are_compared(pair) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps({**config, "rope_theta": 5}))
    (pair[1] / "tokenizer_config.json").write_text("{}")
    (pair[1] / "more.txt").write_text("")
    (pair[1] / "README.md").write_text("a card")
    assert compare_folders(*pair).differences == {
        "config.json": "has other settings",
        "tokenizer_config.json": "differs",
        "more.txt": "is in the merged folder only",
    }


def test_a_float_folder_has_no_codes(tiny_llama) -> None:
    with pytest.raises(SQFTError, match="is float and has no codes"):
        compare_folders(tiny_llama, tiny_llama)
