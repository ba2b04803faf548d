"""Folders of other programs, of every format that is read: codes and values are those of the format's documentation,
and packing is the inverse of reading."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from helpers_foreign import FOREIGN, words_of, write_foreign, write_layer
from packaging.version import Version
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.errors import SQFTError

VERSION = Version(version("compressed-tensors"))
each_format = pytest.mark.parametrize("name", FOREIGN)


@pytest.fixture
def changed(tmp_path):
    """Writes a folder of one layer with other tensors (None: without) or other settings."""

    def change(name: str, tensors: dict | None = None, **settings):
        write_layer(tmp_path / name, name)
        own = load_file(tmp_path / name / "model.safetensors") | {
            f"m.{end}": tensor for end, tensor in (tensors or {}).items()
        }
        save_file(
            {key: tensor for key, tensor in own.items() if tensor is not None}, tmp_path / name / "model.safetensors"
        )
        config = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"] | settings
        (tmp_path / name / "config.json").write_text(json.dumps({"quantization_config": config}))
        return ModelFolder(tmp_path / name)

    return change


@pytest.mark.once
@each_format
def test_codes_and_values_are_those_of_the_documentation(tmp_path, name) -> None:
    layer = write_layer(tmp_path / name, name)
    folder = ModelFolder(tmp_path / name)
    weight = folder.quantized("m")
    assert weight.grid.kind == folder.grid.kind
    assert weight.grid.kind.name == FOREIGN[name].kind
    assert torch.equal(weight.codes, layer.codes)
    assert torch.equal(weight.dequantize(), layer.values)
    assert folder.int4.codes_name("m") == f"m.{FOREIGN[name].code_part}"
    assert torch.equal(
        folder.int4.packed_codes(layer.codes).view(torch.uint8),
        layer.tensors[FOREIGN[name].code_part].view(torch.uint8),
    )
    assert {name.removeprefix("m.") for name in folder.parts("m")} == set(layer.tensors)
    assert folder.weight_shape("m") == (96, 128)


@pytest.mark.once
@each_format
def test_values_are_rounded_to_codes_of_their_value(tmp_path, name) -> None:
    write_layer(tmp_path / name, name)
    weight = ModelFolder(tmp_path / name).quantized("m")
    again = weight.grid.quantize(weight.dequantize())
    assert torch.equal(weight.grid.dequantize(again), weight.dequantize())
    assert torch.equal(weight.grid.keep_same(again, weight.codes), weight.codes)


@each_format
def test_a_model_of_it_has_these_weights(tiny_model, tmp_path, name) -> None:
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "float")
    written = write_foreign(tmp_path / "float", tmp_path / name, name)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(tmp_path / name, dtype=dtype)
        for module, layer in written.items():
            assert torch.equal(model.get_submodule(module).weight, layer.values.to(dtype)), module


@pytest.mark.parametrize(
    "name", [name for name in FOREIGN if FOREIGN[name].config["quant_method"] == "compressed-tensors"]
)
def test_compressed_tensors_dequantizes_the_same_bits(tmp_path, name) -> None:
    """Of 1e5 groups of 16; in the dtype that the library chooses by itself: of the scales, of FP4 bfloat16."""
    if name == "packed-order" and Version("0.20") <= VERSION:
        pytest.skip("compressed-tensors refuses act-order from 0.20 on")
    if name == "mxfp4" and Version("0.17") > VERSION:
        pytest.skip("compressed-tensors does not dequantize MXFP4 before 0.17")

    layer = write_layer(tmp_path / name, name, rows=1600, columns=1024)
    settings = QuantizationConfig.model_validate(FOREIGN[name].config)
    compressor = BaseCompressor.get_value_from_registry(settings.format)
    theirs = compressor.decompress(dict(layer.tensors), settings.config_groups["group_0"])["weight"]
    assert theirs.dtype == (torch.float16 if name == "packed-order" else torch.bfloat16)
    assert torch.equal(theirs, ModelFolder(tmp_path / name).quantized("m").dequantize(theirs.dtype))


@pytest.mark.once
@pytest.mark.parametrize("stored", ["v2", "AutoGPTQ", "GPTQModel"])
def test_symmetric_folders_of_3_bits_are_read_whoever_wrote_them(changed, stored) -> None:
    """GPTQModel takes the constants of the first and the third word for each other when it makes v1 of v2."""
    words = {"v2": words_of([4] * 96, 3), "AutoGPTQ": words_of([3] * 96, 3)}
    wrong = [0x24924924, 0x92492492, 0x49249249] * 3
    words["GPTQModel"] = [(word - one + 2**31) % 2**32 - 2**31 for word, one in zip(words["v2"], wrong, strict=True)]
    qzeros = torch.tensor([words[stored]] * 4, dtype=torch.int32)
    version = "gptq_v2" if stored == "v2" else "gptq"
    folder = changed("gptq3-v2", {"qzeros": qzeros}, sym=True, checkpoint_format=version)
    assert folder.grid.symmetric
    assert bool((folder.quantized("m").zero_point == 4).all())


SCALE = torch.rand(4, 96).half()
ORDER = torch.arange(128).int() // 32
NOT_NESTED = torch.tensor(list(b'{"quant_type": "nf4", "blocksize": 64, "shape": [96, 128]}'), dtype=torch.uint8)


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "tensors", "settings", "message"),
    [
        ("awq", {}, {"bits": 8}, "is awq with bits=8: give a model of 4 bits"),
        ("awq", {}, {"version": "gemv"}, "is awq of version gemv: save it as gemm"),
        ("awq", {}, {"zero_point": False}, "zero_point=false: give one with zero points"),
        ("awq", {}, {"group_size": 48}, "group_size=48 does not divide in=128 of m"),
        ("awq", {"qzeros": None}, {}, r"has no tensor m\.qzeros"),
        ("awq", {"qzeros": torch.zeros(4, 11).int()}, {}, r"m\.qzeros of .* is \(4, 11\), expected \(4, 12\)"),
        ("awq", {"qweight": torch.zeros(128, 12)}, {}, "is torch.float32, expected torch.int32"),
        ("awq", {"scales": SCALE.fill_(torch.nan)}, {}, r"m\.scales holds NaN or infinity"),
        ("gptq-order", {"g_idx": None}, {}, r"has desc_act but no tensor m\.g_idx"),
        ("gptq-order", {"g_idx": ORDER + 1}, {}, r"m\.g_idx of .* names the groups 1\.\.4, there are 0\.\.3"),
        ("gptq8", {}, {"bits": 5}, "has bits=5: give a model of 2, 3, 4, 8 bits"),
        ("gptq8", {}, {"bits": "8"}, "has bits='8': give a model of 2, 3, 4, 8 bits"),
        ("gptq8", {}, {"dynamic": ["m"]}, r"has dynamic=\['m'\], which is no JSON object"),
        ("packed-order", {}, {"transform_config": {"config_groups": {"R4": {}}}}, "has a transform_config, rotations"),
        ("fp8-channel", {}, {"transform_config": {"config_groups": {"R4": {}}}}, "has a transform_config, rotations"),
        ("gptq3-v2", {}, {"checkpoint_format": "gptq"}, "zero points of 3 bits in checkpoint_format gptq"),
        (
            "int8",
            {},
            {"config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "channel"}}}},
            "of 4 bits, type int",
        ),
        ("fp8-channel", {"weight_scale": torch.ones(95, 1)}, {}, r"m\.weight_scale of .* is \(95, 1\), expected"),
        ("fp8-channel", {"weight": torch.zeros(96, 128).char()}, {}, "is torch.int8, expected torch.float8_e4m3fn"),
        (
            "fp8-channel",
            {"weight_scale_inv": torch.ones(96, 1)},
            {},
            "m has both m.weight_scale and m.weight_scale_inv",
        ),
        ("fp8-channel", {"weight_scale": torch.full((96, 1), torch.inf)}, {}, "m.weight_scale holds NaN or infinity"),
        ("fp8-tensor", {"weight": torch.full((96, 128), torch.nan).to(torch.float8_e4m3fn)}, {}, "m.weight holds NaN"),
        (
            "fp8-odd-blocks",
            {},
            {"weight_block_size": [48]},
            r"weight_block_size=\[48\] is no block: give \[rows, columns\]",
        ),
        ("fp8-odd-blocks", {}, {"weight_block_size": [128, 128]}, r"weight_scale_inv of .* is \(3, 3\), expected"),
        ("nvfp4", {"weight_global_scale": None}, {}, r"has no tensor m\.weight_global_scale"),
        ("nvfp4", {"weight_global_scale": torch.zeros(1)}, {}, "expected one number above 0"),
        ("mxfp4", {"weight_scale": torch.full((96, 4), 255).byte()}, {}, r"m\.weight_scale holds NaN"),
        ("nf4", {}, {"load_in_8bit": True}, "is bitsandbytes of 8 bits: give one of NF4"),
        ("nf4", {"weight.quant_map": torch.linspace(-1, 1, 16)}, {}, "has other levels than NF4"),
        ("nf4", {"weight.quant_state.bitsandbytes__nf4": torch.zeros(9).byte()}, {}, "is no state of NF4"),
        ("nf4", {"weight.quant_state.bitsandbytes__nf4": None}, {}, "is bitsandbytes of nf4: give one of NF4"),
        ("nf4-double", {"weight.quant_state.bitsandbytes__nf4": NOT_NESTED}, {}, "state of NF4 .'nested_blocksize'."),
    ],
)
def test_what_is_damaged_or_not_read_is_named(changed, name, tensors, settings, message) -> None:
    folder = changed(name, tensors, **settings)
    with pytest.raises(SQFTError, match=message) as refused:
        _ = folder.grid, folder.quantized("m")
    assert "\n" not in str(refused.value)


@pytest.mark.once
def test_blocks_of_two_rows_are_refused(tmp_path) -> None:
    write_layer(tmp_path / "nf4", "nf4", rows=64, columns=96)
    with pytest.raises(SQFTError, match=r"m of .* has in=96, which its blocks of 64 do not divide"):
        ModelFolder(tmp_path / "nf4").quantized("m")


@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "form"), [("mxfp4", None), ("modelopt", None), ("hqq", None), ("compressed-tensors", "mixed-precision")]
)
def test_an_unknown_method_is_named(changed, method, form) -> None:
    with pytest.raises(SQFTError, match=rf"is quantized as {method}/{form}: this release reads .*awq"):
        changed("awq", quant_method=method, format=form).quantized("m")
