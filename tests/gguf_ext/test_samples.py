"""GGUF files that earlier versions wrote, and folders that they exported; tests/samples/README.md lists them."""

from __future__ import annotations

import json
from pathlib import Path

from sample_content import gguf_content

import gguf_ext
from gguf_ext import export_gguf, export_lora, verify_gguf


def test_a_file_holds_what_it_held_and_equals_its_model(samples: Path) -> None:
    expected = json.loads((samples / "expected.json").read_text())["gguf"]
    assert {name: gguf_content(samples / name) for name in expected} == expected
    for file in ("run/export/model.gguf", "split-00001-of-00002.gguf"):
        assert verify_gguf(samples / "run/quantize", samples / file).ok


def test_exporting_again_gives_the_same_tensors(samples: Path) -> None:
    export_gguf(samples / "run/quantize", samples / "again.gguf")
    assert gguf_content(samples / "again.gguf") == gguf_content(samples / "run/export/model.gguf")
    export_lora(samples / "extracted-dense", samples / "lora-again.gguf", base=samples / "run/prune")
    assert gguf_content(samples / "lora-again.gguf") == gguf_content(samples / "lora.gguf")


def test_llama_cpp_runs_the_file_with_its_adapter(samples: Path) -> None:
    model = gguf_ext.load(str(samples / "run/export/model.gguf"), {"tuned": str(samples / "lora.gguf")})
    assert model("bees 1:", max_tokens=2)["usage"]["completion_tokens"] > 0
