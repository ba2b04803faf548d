"""The tutorial, typed as it stands, on the real model: every command, the server and its answers among them.

Slow (a quarter of an hour on two cores): pytest -m slow tests/real/test_tutorial.py
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from sqft_plugins.evaluate.run import open_session
from tests.docs.conftest import ROOT
from tests.docs.markdown_blocks import blocks_of, shell_commands
from tests.docs.test_code_blocks import run
from tests.real.serving import serve

PAGE = ROOT / "docs/tutorial.md"


@pytest.mark.slow
@pytest.mark.vllm
def test_the_tutorial_runs_as_it_is_typed(gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    monkeypatch.setattr("sqft_plugins.demo.base.prepare_base", lambda target: shutil.copytree(gemma, target))
    blocks = blocks_of(PAGE)
    for block in blocks:
        if block.language == "bash" and not block.reason:
            for command in shell_commands(block.text):
                run(command, block, monkeypatch)

    # the commands that the page's own test leaves out: the server, and what is asked of it
    served, asked = (
        [c for b in blocks if b.reason for c in shell_commands(b.text) if c.startswith(word)]
        for word in ("sqft serve", "curl")
    )
    assert len(served) == 1
    assert len(asked) == 2
    words = shlex.split(served[0])[2:]
    bodies = [json.loads(shlex.split(command)[-1]) for command in asked]
    with serve(Path(words[0]), tmp_path / "server.log", *words[1:]) as server:
        client = server.client()
        answers = {body["model"]: client.completions.create(**body, temperature=0).choices[0].text for body in bodies}

    # the value plane of rank 24 answers as the folder that the tutorial has merged at rank 24
    session = open_session("models/tickets")
    assert answers["tickets@r24"] == next(iter(session.generate([bodies[0]["prompt"]], max_new_tokens=1)))
    session.close()
