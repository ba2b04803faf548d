"""Every bad input has its own class, all under GGUFError, and is found before a byte is written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers_foreign import write_foreign
from helpers_gptq import write_gptq
from safetensors.torch import load_file, save_file

from gguf_ext import errors, export_gguf, verify_gguf
from gguf_ext.errors import GGUFError
from gguf_ext.lora.export import export_lora
from sqft_plugins.cli import main
from sqft_plugins.errors import CheckpointError, GridError, OutputExistsError, SQFTError

CASES = {
    "unsupported architecture": errors.UnsupportedArchitectureError,
    "unknown pre-tokenizer": errors.UnknownPreTokenizerError,
    "missing tokenizer": errors.MissingTokenizerError,
    "tokenizer that llama.cpp lacks": errors.UnsupportedTokenizerError,
    "non-finite weight": errors.NonFiniteWeightError,
    "non-finite scale": errors.ScaleRangeError,
    "scale out of range": errors.ScaleRangeError,
    "scale not exact": errors.ScaleNotExactError,
    "size not divisible by 32": errors.BlockSizeError,
    "act-order": errors.ActOrderError,
    "act-order of AutoGPTQ": errors.ActOrderError,
    "FP8 of others": errors.GGUFError,
    "unmapped tensor": errors.UnmappedTensorError,
    "target exists": errors.TargetExistsError,
    "verification failed": errors.VerificationError,
    "damaged template": errors.DamagedFileError,
    "another template": errors.TemplateError,
}


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _tensor(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def bad(llama, llama_int4, make, byte_level, tmp_path, monkeypatch):
    """`bad(case)`: (a model folder, options of the export) with that fault."""

    def one(case):
        folder, options = tmp_path / "model", {}
        shutil.copytree(llama_int4 if "scale" in case or case == "act-order" else llama, folder)
        scale = "model.layers.1.self_attn.k_proj.weight_scale"
        if case == "unsupported architecture":
            _config(folder, architectures=["XGLMForCausalLM"])
        elif case in ("unknown pre-tokenizer", "tokenizer that llama.cpp lacks"):
            data = json.loads((folder / "tokenizer.json").read_text())
            if case == "unknown pre-tokenizer":
                data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
            else:
                data["normalizer"] = {"type": "Lowercase"}
            (folder / "tokenizer.json").write_text(json.dumps(data))
        elif case == "missing tokenizer":
            for file in folder.glob("token*"):
                file.unlink()
        elif case == "non-finite weight":
            _tensor(folder, "model.layers.1.mlp.up_proj.weight", lambda w: w[3].fill_(float("inf")))
        elif case == "non-finite scale":
            _tensor(folder, scale, lambda w: w[0].fill_(float("nan")))
        elif case == "scale out of range":
            _tensor(folder, scale, lambda w: w[0].fill_(1e5))
        elif case == "scale not exact":
            _tensor(folder, scale, lambda w: w.mul_(1 + 2**-13))
        elif case == "size not divisible by 32":
            shutil.rmtree(folder)
            odd = make["llama"](byte_level, tmp_path / "odd", intermediate_size=80)
            make["int4"](odd, folder, -1)
            shutil.rmtree(odd)
        elif case == "act-order":
            quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
            quantization["config_groups"]["group_0"]["weights"]["actorder"] = "group"
            _config(folder, quantization_config=quantization)
        elif case == "act-order of AutoGPTQ":
            shutil.rmtree(folder)
            write_gptq(llama, folder)
            _tensor(folder, "model.layers.1.mlp.up_proj.g_idx", lambda order: order.copy_(order.flip(0)))
        elif case == "FP8 of others":
            shutil.rmtree(folder)
            write_foreign(llama, folder, "fp8-blocks")
        elif case == "unmapped tensor":
            tensors = {**load_file(folder / "model.safetensors"), "model.vision.weight": torch.ones(2, 2)}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        elif case == "target exists":
            (tmp_path / "m.gguf").write_text("mine")
        elif case == "verification failed":
            monkeypatch.setattr("gguf_ext.write.plan.float_bytes", lambda tensor, kind: _flipped(tensor, kind))
        elif case.endswith("template"):
            export_gguf(llama, tmp_path / "base.gguf")
            data = (tmp_path / "base.gguf").read_bytes()
            if case == "damaged template":
                (tmp_path / "base.gguf").write_bytes(data[:-100])
            else:
                _config(folder, architectures=["XGLMForCausalLM"], model_type="xglm")
                _tensor(folder, "model.layers.1.mlp.up_proj.weight", lambda w: w.normal_())
            options["template_gguf"] = tmp_path / "base.gguf"
        return folder, options

    return one


def _flipped(tensor, kind):
    from gguf_ext.write.transcode import float_bytes

    raw = float_bytes(tensor, kind).copy()
    raw[0, 0] ^= 1
    return raw


@pytest.mark.parametrize("case", CASES)
def test_every_bad_input_has_its_class_and_nothing_is_written(case, bad, tmp_path):
    folder, options = bad(case)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(CASES[case]) as caught:
        export_gguf(folder, tmp_path / "m.gguf", **options)
    assert type(caught.value) is CASES[case]
    assert isinstance(caught.value, GGUFError)
    assert "\n" not in str(caught.value)
    if case != "verification failed":  # which needs a file to read back; it is gone again
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert set(tmp_path.rglob("*")) == set(before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 2}, "q_proj.weight has 128 rows, 64 by the heads"),
        ({"num_attention_heads": 8}, "q_proj.weight has 128 rows, 256 by the heads"),
        ({"vocab_size": 400}, "rows in its embedding, but vocab_size=400"),
        ({"vocab_size": 4000}, "rows in its embedding, but vocab_size=4000"),
        ({"model_type": "no-such"}, "no language model that transformers knows"),
    ],
)
def test_a_config_of_another_model_is_named_and_nothing_is_written(changes, words, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    _config(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        export_gguf(folder, tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_weight_wider_than_float32_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double() / 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GGUFError, match=r"model\.norm\.weight is float64: save the model in float32"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_a_masked_adapter_has_a_class_of_its_own(tmp_path):
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "SQFT", "sparse": True, "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(errors.AdapterError, match="is masked"):
        export_lora(tmp_path / "adapter", tmp_path / "m.gguf")


def test_there_is_one_base_and_the_cores_classes_catch_theirs():
    for name in vars(errors):
        found = getattr(errors, name)
        if isinstance(found, type) and found.__module__ == errors.__name__:
            assert issubclass(found, GGUFError)
    assert issubclass(GGUFError, SQFTError)
    assert issubclass(errors.TargetExistsError, OutputExistsError)
    assert issubclass(errors.ActOrderError, CheckpointError)
    assert issubclass(errors.ScaleRangeError, GridError)


def test_the_command_line_prints_one_line_and_exits_with_2(bad, tmp_path, capsys):
    folder, _ = bad("act-order of AutoGPTQ")
    with pytest.raises(SystemExit) as caught:
        main(["export", "gguf", str(folder), "--out", str(tmp_path / "m.gguf")])
    assert caught.value.code == 2
    assert "is INT4_ACT_ORDER, and the export has types for integers in groups of neighbours" in capsys.readouterr().err


def test_verify_refuses_the_same_models(bad, llama, tmp_path):
    folder, _ = bad("act-order of AutoGPTQ")
    export_gguf(llama, tmp_path / "m.gguf")
    with pytest.raises(errors.ActOrderError):
        verify_gguf(folder, tmp_path / "m.gguf")
