"""Bad input: one clear line with the remedy when the engine is started, and nothing served wrongly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.errors import GridError

pytestmark = pytest.mark.vllm
MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture
def copy(tiny_int4, tmp_path) -> Path:
    return shutil.copytree(tiny_int4("llama"), tmp_path / "int4")


def change_masks(folder: Path, change) -> None:
    masks = load_file(folder / "sqft" / "mask.safetensors")
    change(masks)
    save_file(masks, folder / "sqft" / "mask.safetensors")


def newer(folder: Path) -> None:
    file = folder / "sqft" / "stamp.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def shrink_mask(masks) -> None:
    masks[MODULE] = masks[MODULE][:, :-1].contiguous()


def foreign_mask(masks) -> None:
    masks["model.layers.9.mlp.up_proj"] = masks[MODULE].clone()


DAMAGES = {
    "a newer stamp": (newer, "upgrade sqft-plugins"),
    "a cut mask file": (lambda folder: cut(folder / "sqft" / "mask.safetensors"), "copy the model again"),
    "no mask file": (lambda folder: (folder / "sqft" / "mask.safetensors").unlink(), "copy the whole folder again"),
    "a mask of another shape": (lambda folder: change_masks(folder, shrink_mask), f"mask of {MODULE}"),
    "a mask of another model": (lambda folder: change_masks(folder, foreign_mask), "has no tensor"),
    "a cut shard": (lambda folder: cut(folder / "model.safetensors"), "damaged or cut off"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_before_anything_is_loaded(damage, copy):
    from vllm.engine.arg_utils import EngineArgs

    harm, message = DAMAGES[damage]
    harm(copy)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        EngineArgs(model=str(copy), max_model_len=256).create_engine_config()
    (line,) = [line for line in str(caught.value).splitlines() if message in line]
    assert str(copy) in line or "sqft" in line or MODULE in line


def test_a_sound_folder_passes_the_same_check(copy):
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(copy), max_model_len=256).create_engine_config()
    assert config.model_config.quantization == "sqft"
    assert config.quant_config.folder == copy


def test_a_mask_that_prunes_other_places_is_refused_while_loading(copy, engine):
    change_masks(copy, lambda masks: masks.__setitem__(MODULE, masks[MODULE].flip(0).contiguous()))
    with pytest.raises(
        ValueError, match=f"{MODULE} is not zero at .* places that its mask prunes.*copy the whole folder"
    ):
        engine(copy)


def test_an_unknown_operator_is_refused_before_anything_is_loaded(copy, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("SQFT_VLLM_OPERATOR", "fast")
    with pytest.raises(ValueError, match="SQFT_VLLM_OPERATOR=fast is no operator"):
        EngineArgs(model=str(copy), max_model_len=256).create_engine_config()


@pytest.mark.parametrize(
    ("columns", "rows", "group_size", "symmetric", "message"),
    [
        (48, [64], 16, True, "in=48 of each of 4 tensor-parallel ranks is no multiple of 32: use fewer ranks"),
        (96, [64], 64, True, r"in=96 of each of 4 tensor-parallel ranks is no multiple of 64 \(the group size\)"),
        (64, [32, 16], 32, True, "out=48 of each of 4 tensor-parallel ranks is no multiple of 32"),
        (48, [64], -1, True, "in=48 of each of 4"),
        (64, [52, 44], 32, True, None),
        (64, [52, 44], 32, False, "out=52 of each of 4 tensor-parallel ranks is no multiple of 8"),
    ],
)
def test_a_shard_that_does_not_divide_is_refused_before_loading(columns, rows, group_size, symmetric, message):
    from vllm_ext.quantization.linear import SQFTLinearMethod

    layer = SimpleNamespace(scheme=SimpleNamespace(group_size=group_size, symmetric=symmetric), tp_size=4)
    method = SQFTLinearMethod(SimpleNamespace(), "model.layers.0.mlp.down_proj")
    if message is None:
        method._check_shard(layer, columns, rows)
        return
    with pytest.raises(GridError, match=f"model.layers.0.mlp.down_proj: {message}"):
        method.create_weights(layer, columns, rows, 4 * columns, 4 * sum(rows), torch.float32, weight_loader=None)
