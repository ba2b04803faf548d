"""Random models of all families, and their files with other entries."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_llama import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from gguf_ext import export_gguf
from gguf_ext.arch import Entry
from gguf_ext.export import write_tensors
from gguf_ext.layout import find_layout
from gguf_ext.reader import GGUFFile
from gguf_ext.write.plan import plan
from sqft_plugins.checkpoint import ModelFolder


@pytest.fixture(scope="module")
def save(make, tmp_path_factory):
    """A random model of a family with the options; `raw`: written over config.json afterwards."""
    tokenizers = {True: make["fallback"](), False: make["byte_level"]()}

    def write(family, raw=None, **options):
        folder = tmp_path_factory.mktemp("loadable") / "model"
        tokenizer = tokenizers[family == "gemma3_text"]
        ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
        config = AutoConfig.for_model(family, **{**FAMILIES[family], **ids, **options})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.25 + float("norm" in name and "gemma" not in family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if raw:
            settings = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**settings, **raw}))
        return folder

    return write


@pytest.fixture(scope="module")
def base(save):
    """Family → its file's entries and a function that writes the file with other entries."""
    found = {}

    def of(family):
        if family not in found:
            folder = save(family)
            file = folder.with_name("model.gguf")
            export_gguf(folder, file)
            read, source = GGUFFile(file), ModelFolder(folder)
            layout = find_layout(source)
            planned = plan(source, layout.tensors)
            entries = {key: Entry(key, value, read.kinds[key]) for key, value in read.metadata.items()}
            entries.pop("general.architecture")

            def write(path, changes, layout=layout, planned=planned, source=source, entries=entries):
                changed = {**entries, **{key: Entry(key, *change) for key, change in changes.items() if change}}
                kept = [entry for key, entry in changed.items() if changes.get(key, True)]
                write_tensors(path, layout.architecture, kept, planned, source)

            found[family] = ({key: entry.value for key, entry in entries.items()}, write)
        return found[family]

    return of
