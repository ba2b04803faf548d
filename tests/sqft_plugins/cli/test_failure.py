"""A failure that nobody foresaw leaves one file, without data and without secrets; a signal and a reader that has gone
end a command in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from sqft_plugins.cli import cli, failure, main
from sqft_plugins.cli.failure import FAILED, KEPT, described

pytestmark = pytest.mark.once
SECRETS = {"HF_TOKEN": "hf-from-the-environment", "VLLM_API_KEY": "key-of-the-server"}


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """`failing(error)` makes `sqft plan` raise it; the reports go to the folder that is returned."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def prepare(error: BaseException) -> Path:
        @click.command(context_settings={"ignore_unknown_options": True})
        @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
        def command(rest) -> None:
            raise error

        monkeypatch.setattr(cli, "get_command", lambda ctx, name: command)
        return tmp_path / "state/sqft/failures"

    return prepare


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_a_failure_is_one_line_that_names_one_file(failing, capsys) -> None:
    folder = failing(KeyError("gate"))
    assert code_of("plan", "model", "--out", "x") == FAILED == 70
    (file,) = folder.iterdir()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("sqft: KeyError: 'gate': this should not happen; please report it with ")
    assert str(file) in error
    text = file.read_text()
    for wanted in ("sqft-plugins: ", "python: ", "torch: ", "command: sqft plan model --out x\n", "KeyError: 'gate'"):
        assert wanted in text
    assert f'{Path(__file__).name}", line' in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_secret_and_no_data_is_in_it(failing, monkeypatch, capsys) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/somebody")
    secret = "SECRET1 hf_abcdefgh12345 https://me:SECRET2@host/x?token=SECRET3&a=b key-of-the-server"
    local_value = "a row of the user's data"
    messages = f"Bearer SECRET4 {SECRETS['HF_TOKEN']} /home/somebody/m\n{local_value}", "https://me:SECRET5@host"
    try:
        try:
            raise ValueError(messages[0])
        except ValueError as cause:
            raise RuntimeError(messages[1]) from cause
    except RuntimeError as error:
        words = ["serve", "m", "--api-key", secret[:7], "--prompt", f"{secret} {local_value}", "--x=a b", "s3://a:b@c"]
        text = described(error, words)
    for hidden in ("SECRET", "hf_abc", local_value, *SECRETS.values(), "somebody", "a:b@"):
        assert hidden not in text
    assert "command: sqft serve m --api-key *** --prompt <" in text
    assert "--x=<3 characters> s3://***@c" in text
    assert (
        text.index("ValueError: Bearer ***") < text.index("which led to") < text.index("RuntimeError: https://***@host")
    )


def test_where_its_folder_takes_no_file_it_is_here_and_else_on_stderr(failing, monkeypatch, tmp_path, capsys) -> None:
    failing(ZeroDivisionError())
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    assert code_of("plan") == FAILED
    assert [path.name.partition("-2")[0] for path in here.iterdir()] == ["sqft-failure"]
    monkeypatch.setattr(failure, "_write", lambda folder, text: (_ for _ in ()).throw(OSError(28, "full")))
    capsys.readouterr()
    assert code_of("plan") == FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sqft failure report"
    assert lines[-1].startswith("sqft: ZeroDivisionError: ZeroDivisionError: this should not happen")


def test_reports_do_not_fill_the_disk(failing) -> None:
    folder = failing(KeyError("x"))
    folder.mkdir(parents=True)
    for number in range(KEPT + 5):
        (folder / f"sqft-failure-2020{number:02}.txt").touch()
    (folder / "of somebody else").touch()
    assert code_of("plan") == FAILED
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == KEPT + 1
    assert names[0] == "of somebody else"
    assert not names[-1].startswith("sqft-failure-2020")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(5, "Input/output error", "m"), "m: Input/output error: the device fails"),
        (OSError(24, "Too many open files", "m"), "m: Too many open files: close other programs"),
        (OSError(36, "File name too long", "m"), "m: File name too long: choose another path"),
        (ValueError("I/O error: File too large (os error 27)"), "output: File too large: free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"), "output: No space left"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_a_line_and_no_failure_of_ours(failing, capsys, error, line) -> None:
    folder = failing(error)
    assert code_of("plan") == 2
    assert capsys.readouterr().err.startswith(f"sqft: {line}")
    assert not folder.exists()


@pytest.mark.parametrize("verb", ["schema", "plugins"])  # click prints one, rich the other
def test_a_reader_that_has_gone_ends_a_command_as_any_other(verb) -> None:
    """As `sqft plugins | head -0`: no traceback, and the code of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    code = f"from sqft_plugins.cli import main; main([{verb!r}])"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


WORK = """
import sys, time
from sqft_plugins.cli import cli, main
import click
from sqft_plugins.checkpoint.files import write_folder
from sqft_plugins.progress import say, track
@click.command()
def work():
    with write_folder(sys.argv[1]) as folder:
        (folder / "half").write_text("x")
        print("working", flush=True)
        time.sleep(float(sys.argv[2]))
        for _ in track(range(3), "x"):
            say("a line that nobody reads")
cli.get_command = lambda ctx, name: work
main(["work"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_and_is_what_ended_the_process(tmp_path, number) -> None:
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path / "out"), "60"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    process.send_signal(number)
    process.send_signal(number)  # as systemd and terminals do: the second must not end the cleaning up
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -number
    assert errors.decode().startswith(f"sqft: ended by {number.name}: no unfinished output stays")
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_hangup_and_a_stderr_that_nobody_reads_end_no_work(tmp_path) -> None:
    """As `nohup sqft ... 2>&1 | less`, left."""
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path / "out"), "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"working\n"
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    begin = time.monotonic()
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - begin < 25
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
