"""The command, over the lists of everything that is installed."""

import json
import subprocess
import sys

import pytest

from sqft_plugins.canary import __main__ as command
from sqft_plugins.canary.compare import Broken
from sqft_plugins.plugins.protocols import Touch


@pytest.fixture
def one(written, monkeypatch):
    written.write(engine="class Engine: pass", ours="")
    touches = [Touch(f"{written.theirs}.engine.Engine", "a")]
    monkeypatch.setattr(command, "lists", lambda: [written.upstream(*touches, seen=">=2")])
    return written, touches


def test_nothing_moved(one, capsys):
    written, _ = one
    assert command.main([]) == 0
    shown = f"{written.ours}: {written.theirs} 0: all 1 in their place, newer or older than those seen (>=2)"
    assert capsys.readouterr().out.strip() == shown


def test_what_moved_is_named_with_what_breaks_and_the_status_is_1(one, capsys):
    written, touches = one
    touches.append(Touch(f"{written.theirs}.engine.Engine.load", "nothing loads", used="ours.py:3"))
    assert command.main([]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"  {written.theirs}.engine.Engine.load: gone. Without it: nothing loads (ours.py:3)"

    assert command.main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["packages"][0]["moved"][0]["how"] == "gone"


def test_a_package_that_is_not_there_has_a_line(written, monkeypatch, capsys):
    written.write(ours="")
    monkeypatch.setattr(command, "lists", lambda: [written.upstream()])
    assert command.main([]) == 0
    assert capsys.readouterr().out.strip() == f"{written.ours}: {written.theirs} is not installed: skipped"


@pytest.mark.once
def test_the_lists_and_the_look_import_nothing_of_others():
    code = (
        "import sys\nfrom sqft_plugins.canary.__main__ import main\nmain(['--no-probes'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'vllm', 'llama_cpp', 'gguf', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sqft_plugins: torch" in done.stdout


def test_every_name_that_is_looked_for_can_be_listed(one, capsys):
    written, touches = one
    touches.append(Touch(f"{written.theirs}.engine.run", "nothing runs", parameters="self, x", used="ours.py:3"))

    assert command.main(["--list"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{written.ours}: {written.theirs}.engine.Engine: a"
    assert second == f"{written.ours}: {written.theirs}.engine.run(self, x): nothing runs (ours.py:3)"


def test_a_plug_in_whose_list_fails_is_listed(monkeypatch, capsys):
    monkeypatch.setattr(command, "lists", lambda: [Broken("theirs", "KeyError: 'x'")])
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out == "theirs: sqft_upstream: fails: KeyError: 'x'\n"
