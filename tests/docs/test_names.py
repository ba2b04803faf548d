"""What a page names by its dotted name or its path is there, also in sentences: nothing else would notice them."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT
from tests.docs.test_code_blocks import PAGES

OURS = "sqft_plugins|peft_ext|gguf_ext|vllm_ext"
DOTTED = re.compile(rf"\b(?:{OURS})(?:\.(?!(?:md|py)\b)[A-Za-z_]\w*)+")
WITH_VLLM = importlib.util.find_spec("vllm") is not None
"""Where it is not, the names of vllm_ext are left to the lane that has it."""
PATHS = re.compile(rf"`((?:{OURS}|docs|examples|benchmarks|\.ci)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in set(DOTTED.findall(text)):
        if WITH_VLLM or not name.startswith("vllm_ext."):
            pkgutil.resolve_name(name)
    for path in set(PATHS.findall(text)):
        assert (ROOT / path).exists(), path
