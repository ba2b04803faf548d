"""Adapters through every kind of grid: what is trained, evaluated and merged are the same codes; what cannot be is
refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers_peft import TARGETS, fill_adapter
from peft import get_peft_model
from torch import nn

from peft_ext import SQFTConfig, grids
from peft_ext.model import sqft_layers
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import GridError, MismatchError
from sqft_plugins.grid import BUILTIN, INT4, INT8, IQ4_NL, MXFP4, Grid, GridKind, QuantizedWeight, make_grid
from sqft_plugins.structure import find_linears, weight_of

pytestmark = pytest.mark.filterwarnings("ignore:.*put_rest_on_grid")
AFFINE = GridKind("affine4", 4, affine=True)
KINDS = [*BUILTIN.values(), AFFINE]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def grid_over(weight: torch.Tensor, kind: GridKind) -> Grid:
    """A grid of groups of 32 that covers `weight`."""
    if kind.is_integer:
        return make_grid(weight, 32, symmetric=False, kind=kind)
    grouped = weight.unflatten(1, (-1, 32))
    if kind.affine:
        low, high = grouped.amin(-1), grouped.amax(-1)
        return Grid(kind, (high - low) / kind.max_code, offset=low)
    largest = max(abs(level) for level in kind.levels or () if level == level)
    return Grid(kind, grouped.abs().amax(-1) / largest)


class Quantized(ModelFolder):
    """A float folder whose linear layers stand for the weights of a quantized model of any kind."""

    def __init__(self, path, kind: GridKind, dense: bool = True) -> None:
        super().__init__(path)
        self.dense = dense
        self.weights = {}
        for name, layer in find_linears(load_model(path)).items():
            grid = grid_over(weight_of(layer).float(), kind)
            self.weights[name] = QuantizedWeight(grid.quantize(weight_of(layer).float()), grid)
        self.__dict__["int4"] = Weights(self.weights)

    def quantized(self, module: str) -> QuantizedWeight:
        return self.weights[module]

    def kept(self, module: str) -> torch.Tensor:
        return self.weights[module].dequantize() != 0 if module in self.weights else torch.ones(1)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The model with the dequantized codes in its layers."""
        model = load_model(self.path, dtype=dtype)
        for name, weight in self.weights.items():
            weight_of(model.get_submodule(name)).copy_(weight.dequantize(dtype))
        return model


class Weights(dict):
    bitmask = None
    grid = GridStamp(group_size=32, symmetric=False)
    modules = property(sorted)
    scale_spec = staticmethod(lambda module: SimpleNamespace(dtype=torch.float32))


@pytest.fixture
def folder(tiny_llama, monkeypatch):
    def made(kind: GridKind, dense: bool = True) -> Quantized:
        found = Quantized(tiny_llama, kind, dense)
        monkeypatch.setattr(grids, "int4_folder", lambda model, config: found)
        return found

    return made


def tuned(model: nn.Module, folder: ModelFolder, on_grid: bool = True):
    config = SQFTConfig(
        target_modules=TARGETS, r=8, quantization_aware=True, grid=None if on_grid else str(folder.path)
    )
    return get_peft_model(model, config)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_and_the_merge_are_the_same_values(folder, kind, dtype) -> None:
    found = folder(kind)
    model = tuned(found.load(dtype), found)
    for name, weight in model.base_model.quantized(merged=False).items():
        assert torch.equal(found.weights[name].dequantize(), weight.dequantize())
    fill_adapter(model).eval()

    codes, moved = model.base_model.quantized(), 0
    for name, layer in sqft_layers(model.base_model.model, "default"):
        with torch.enable_grad():
            seen = layer(torch.eye(layer.in_features, dtype=dtype)).T  # x = I shows the weight
        assert torch.equal(seen.detach(), codes[name].dequantize(dtype))
        moved += int((codes[name].codes != found.weights[name].codes).sum())
    assert moved > 100
    merged = model.merge_and_unload(safe_merge=True)
    for name, weight in codes.items():
        assert torch.equal(merged.get_submodule(name).weight, weight.dequantize(dtype))


@each_kind
def test_over_the_float_base_every_weight_of_a_dense_model_is_trained(folder, kind) -> None:
    found = folder(kind)
    base = load_model(found.path, dtype=torch.float32)
    weight_of(base.get_submodule("model.layers.0.self_attn.q_proj"))[0, :5] = 0  # zeros by chance
    model = fill_adapter(tuned(base, found, on_grid=False))
    layer = model.base_model.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert bool(layer.base_mask("default").all())
    A, B, scaling = layer.sub_adapter("default")
    codes = layer.quantized("default")
    wanted = layer.unmerged_weight().double() + scaling * (B.double() @ A.double())
    assert torch.equal(codes.codes, codes.grid.quantize(wanted.float()))


def test_the_stamp_names_the_kinds(folder) -> None:
    found = folder(MXFP4)
    q_proj = "model.layers.0.self_attn.q_proj"
    found.weights[q_proj] = Quantized(found.path, INT8).weights[q_proj]
    model = tuned(found.load(torch.float32), found)
    assert model.peft_config["default"].grid_stamp["kind"] == "int8+mxfp4"


def test_an_adapter_of_another_kind_is_refused_by_name(folder) -> None:
    found = folder(INT8)
    config = tuned(found.load(torch.float32), found).peft_config["default"]
    config.grid_stamp, config.mask_hash = dict(config.grid_stamp), None
    other = folder(MXFP4)
    with pytest.raises(MismatchError, match=r"was trained through int8 and .* is mxfp4"):
        get_peft_model(other.load(torch.float32), config)


@pytest.mark.parametrize("kind", [IQ4_NL, AFFINE], ids=lambda kind: kind.name)
def test_a_mask_on_a_grid_without_zero_is_refused_by_name(folder, kind, monkeypatch) -> None:
    found = folder(kind, dense=False)
    pruned = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr(Quantized, "kept", lambda self, module: pruned)
    with pytest.raises(MismatchError, match=rf"q_proj is {kind.name} in .*, a grid without 0, and its mask prunes"):
        tuned(found.load(torch.float32), found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_scale_is_refused_by_name(folder, value) -> None:
    found = folder(INT4)
    model = found.load(torch.float32)
    found.weights["model.layers.1.mlp.down_proj"].scale[3, 0] = value
    with pytest.raises(GridError, match=r"layers\.1\.mlp.down_proj of .* has a scale that is NaN or infinite"):
        tuned(model, found)


@pytest.mark.parametrize("kind", [AFFINE, INT8, MXFP4], ids=lambda kind: kind.name)
def test_codes_are_kept_where_a_narrow_base_does_not_tell_them(folder, kind) -> None:
    found = folder(kind)
    if kind is AFFINE:
        for name, weight in found.weights.items():
            moved = Grid(AFFINE, weight.scale, offset=torch.full_like(weight.scale, 1000.0))
            found.weights[name] = weight._replace(grid=moved)
    for dtype in (torch.float32, torch.bfloat16):
        model = tuned(found.load(dtype), found)
        layers = sqft_layers(model.base_model.model, "default")
        kept = [layer.elastic["default"].grid.codes is not None for _, layer in layers]
        assert any(kept) == (dtype == torch.bfloat16 and kind is not MXFP4)
        for name, layer in sqft_layers(model.base_model.model, "default"):
            assert torch.equal(layer.quantized("default").dequantize(), found.weights[name].dequantize())
