"""PEFT knows the adapter type as one of its own."""

from __future__ import annotations

import importlib.metadata
import pickle
import subprocess
import sys

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from peft_ext import SQFTConfig, SQFTModel, registry
from sqft_plugins.errors import DependencyError


def test_the_enum_member_behaves_like_any_other() -> None:
    member = PeftType("SQFT")
    assert member is PeftType["SQFT"] is PeftType.SQFT
    assert member in list(PeftType)
    assert member == "SQFT"
    assert pickle.loads(pickle.dumps(member)) is member
    assert isinstance(member, PeftType)
    assert len({kind.value for kind in PeftType}) == len(PeftType)


def test_registering_twice_changes_nothing() -> None:
    before = list(PeftType)
    registry.register(SQFTConfig, SQFTModel)
    assert list(PeftType) == before
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SQFT] is SQFTConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.SQFT] is SQFTModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.SQFT] == "lora_"


def test_a_pickled_config_registers_the_type_where_it_is_read(tmp_path) -> None:
    file = tmp_path / "config.pickle"
    config = SQFTConfig(r=8, rank_choices=[8, 4], target_modules=["q_proj"])
    file.write_bytes(pickle.dumps(config))
    code = f"import pickle; c = pickle.load(open({str(file)!r}, 'rb')); print(c.peft_type.value, c.rank_choices)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "SQFT [8, 4]"


@pytest.mark.parametrize("found", ["0.20.0", "0.22.0", "1.0"])
def test_another_version_of_peft_is_refused(monkeypatch, found) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.raises(DependencyError, match=rf"peft: {found}, outside .*: run pip install"):
        registry.check_version()
