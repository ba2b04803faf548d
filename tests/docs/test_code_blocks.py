"""Every code block of the README and the documentation runs as it stands, or says why it is not run.

The blocks of a page run in their order, in one folder and one namespace, on tiny models that bear the names of the
page; a training that does not say how long takes four steps.
One page: pytest tests/docs/test_code_blocks.py -k concepts
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sqft_plugins.demo import base
from tests.docs.conftest import ROOT, run_sqft, without_output
from tests.docs.markdown_blocks import Block, blocks_of, shell_commands

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SLOW = {"trl.md": "imports TRL, which imports vLLM"}
PARSED = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
LANGUAGES = {"python", "bash", "text", *PARSED}


def pages() -> list:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if any(not block.reason for block in blocks_of(page))
    ]


@pytest.mark.parametrize("page", pages())
def test_the_blocks_of_a_page_run(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "prepare_base", lambda target: shutil.copytree("models/gemma", target))
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: say its language, one of {sorted(LANGUAGES)}"
        if block.reason:
            continue
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        elif block.language == "bash":
            for command in shell_commands(block.text):
                run(command, block, monkeypatch)
        elif block.language in PARSED:
            PARSED[block.language](block.text)


def run(command: str, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqft …`, `python -c …`, `head …` or `echo … | sqft …`. Anything else must be marked as not run."""
    words = shlex.split(command, comments=True)
    if words[0] in ("echo", "printf") and "|" in words:
        pipe = words.index("|")
        text = " ".join(words[1:pipe]).replace("\\n", "\n")
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        words = words[pipe + 1 :]
    if ">" in words:
        words = words[: words.index(">")]
    if words[0] == "sqft":
        if words[1] == "train" and not {"--steps", "--epochs"} & set(words):
            words += ["--steps", "4"]  # the default is 100, which teaches a random model no more
        assert run_sqft(without_output(words[1:])) == 0, f"{block}: {command}"
    elif words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "head":
        assert Path(words[-1]).is_file(), f"{block}: {words[-1]} is not there"
    else:
        pytest.fail(f"{block}: {words[0]!r} cannot run here: write <!-- not run: why --> above the block")


def test_a_mark_must_give_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run:  -->\n```bash\nmake\n```\n\n<!-- not run: needs a GPU -->\n```bash\nmake\n```\n")
    assert [block.reason for block in blocks_of(page)] == ["", "needs a GPU"]
