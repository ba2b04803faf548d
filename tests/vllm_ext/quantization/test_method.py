"""Which folders quantization `sqft` claims; without vLLM."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sqft_plugins.errors import CheckpointError
from vllm_ext.quantization.method import claims


@pytest.fixture
def stamped(tiny_int4, tmp_path) -> Path:
    return shutil.copytree(tiny_int4("llama"), tmp_path / "int4")


def asked(folder: Path, user_quant: str | None = None, **changes) -> bool:
    quantization = {**json.loads((folder / "config.json").read_text())["quantization_config"], **changes}
    quantization = {key: value for key, value in quantization.items() if value is not None}
    return claims(quantization, user_quant, SimpleNamespace(name_or_path=str(folder)))


def test_a_stamped_folder_is_claimed(stamped):
    assert asked(stamped)


def test_the_stamp_file_is_the_authority_when_transformers_dropped_the_key(stamped):
    assert asked(stamped, sqft=None)


def test_the_key_without_the_stamp_file_is_left_to_vllm_and_said(stamped, caplog):
    shutil.rmtree(stamped / "sqft")
    with caplog.at_level(logging.WARNING, "vllm.sqft"):
        assert not asked(stamped)
    assert "copy the whole folder again" in caplog.text


def test_other_compressed_tensors_folders_are_left_alone(stamped):
    shutil.rmtree(stamped / "sqft")
    assert not asked(stamped, sqft=None)


@pytest.mark.parametrize("changes", [{"format": "float-quantized"}, {"quant_method": "gptq"}, {"quant_method": "fp8"}])
def test_other_formats_are_left_alone(stamped, changes):
    assert not asked(stamped, **changes)


@pytest.mark.parametrize("named", ["compressed-tensors", "fp8"])
def test_the_users_own_quantization_wins(stamped, named):
    assert not asked(stamped, named)
    assert asked(stamped, "sqft")


def test_the_compact_form_is_claimed_by_its_method():
    assert claims({"quant_method": "sqft", "format": "compact"}, None, None)


def test_on_a_hub_the_key_decides(stamped):
    quantization = json.loads((stamped / "config.json").read_text())["quantization_config"]
    assert claims(quantization, None, SimpleNamespace(name_or_path="somebody/some-model"))
    quantization.pop("sqft")
    assert not claims(quantization, None, SimpleNamespace(name_or_path="somebody/some-model"))


def test_a_newer_stamp_is_refused_with_the_remedy(stamped):
    file = stamped / "sqft" / "stamp.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(CheckpointError, match=r"stamp version 99, this release reads up to \d+: upgrade sqft-plugins"):
        asked(stamped)
