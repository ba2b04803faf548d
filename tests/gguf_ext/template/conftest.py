"""Models without a table, pruned and quantized, and files of their base."""

from __future__ import annotations

import pytest
import torch
from helpers_arch import SHAPE
from helpers_template import FAMILIES, write_base

from gguf_ext import arch
from sqft_plugins.checkpoint import ModelFolder


@pytest.fixture(autouse=True)
def without_tables(monkeypatch):
    """The classes of `FAMILIES` have tables: these tests are about models whose class has none."""
    left = tuple(table for table in arch.ARCHITECTURES if table.name not in FAMILIES)
    monkeypatch.setattr(arch, "ARCHITECTURES", left)


@pytest.fixture(scope="module")
def made(tiny_tokenizer, tmp_path_factory, make):
    """`made(family)`: (model, folder of the float model pruned to 50 %, its INT4 folder, base.gguf); made once."""
    found = {}

    def one(family):
        if family in found:
            return found[family]
        place = tmp_path_factory.mktemp(family)
        kind, config, changes, _ = FAMILIES[family]
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        model = kind(config(vocab_size=640, **special, **{**SHAPE, **changes})).eval()
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * (0.05 if "gemma2" in family and "norm" in name else 0.25)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight") and family != "gemma2":
                parameter.data += 1
        tokenizer = tiny_tokenizer("byte-level")
        base = write_base(model, tokenizer, family, place / "base.gguf")
        for folder in ("float", "whole"):
            tokenizer.save_pretrained(place / folder)
        model.save_pretrained(place / "whole")
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.data[torch.rand_like(parameter) < 0.5] = 0
        model.save_pretrained(place / "float")
        whole = ModelFolder(place / "whole")
        for name in whole.files:
            model.get_parameter(name).data = whole.tensor(name)
        found[family] = (model, place / "float", _int4(place, make), base)
        return found[family]

    return one


def _int4(place, make):
    """`make["int4"]` knows Llama's names: those of Starcoder2 are others."""
    folder = place / "int4"
    names = [name for name in ModelFolder(place / "whole").files if "_proj.weight" in name]
    assert names
    make["int4"](place / "whole", folder)
    return folder
