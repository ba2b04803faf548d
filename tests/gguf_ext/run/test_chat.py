"""`sqft chat`: the conversation, its commands, the terminal, and the pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import gguf_ext
from gguf_ext import GGUFError, export_gguf, export_lora
from gguf_ext.cli.chat import chat_command
from gguf_ext.errors import RuntimeFailedError
from gguf_ext.run.chat import Chat, parse_adapter

OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def place(tiny_model, tiny_tokenizer, tmp_path_factory):
    """plain.gguf without a chat template, chat.gguf with one, and the LoRA files math.gguf and code.gguf."""
    root = tmp_path_factory.mktemp("chat")
    model = tiny_model("llama")
    for parameter in model.parameters():  # logits far enough apart that the likeliest token is the same in F16
        parameter.data *= 4
    for name, template in (("plain", None), ("chat", TEMPLATE), ("broken", "{{ raise_exception('no system role') }}")):
        tokenizer = tiny_tokenizer("byte-level")
        tokenizer.chat_template = template
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        export_gguf(root / name, root / f"{name}.gguf", float_type="f32")
    for seed, name in enumerate(("math", "code")):
        base = AutoModelForCausalLM.from_pretrained(root / "plain", dtype=torch.float32)
        tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
        torch.manual_seed(seed)
        for key, parameter in tuned.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn_like(parameter) * 0.5
        tuned.save_pretrained(root / name)
        export_lora(root / name, root / f"{name}.gguf")
    return root


@pytest.fixture
def chat(place):
    files = {"math": place / "math.gguf", "code": place / "code.gguf"}
    llm = gguf_ext.load(place / "chat.gguf", files, **OPTIONS)
    yield Chat(llm, max_tokens=12)
    llm.close()


def _greedy(folder, tokens, count):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = model.generate(torch.tensor([tokens]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(found[0, len(tokens) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.replace("\ufffd", "")  # llama-cpp-python leaves out bytes that are no UTF-8


def test_the_conversation_is_what_the_template_makes_of_it(chat, place):
    tokenizer = AutoTokenizer.from_pretrained(place / "chat")
    messages = []
    for prompt in ("One two", "three"):
        messages.append({"role": "user", "content": prompt})
        tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        answer = "".join(chat.ask(prompt))
        assert answer == _greedy(place / "chat", tokens, 12)
        assert chat.statistics["finish_reason"] in ("stop", "length")
        messages.append({"role": "assistant", "content": answer})
    chat.reset()
    tokens = tokenizer.apply_chat_template(messages[:1], tokenize=True, return_dict=False)
    assert "".join(chat.ask("One two")) == _greedy(place / "chat", tokens, 12)


def test_without_a_template_each_text_is_completed_on_its_own(place):
    wanted = _greedy(place / "plain", AutoTokenizer.from_pretrained(place / "plain")("One two").input_ids, 12)
    for name, plain in (("plain", False), ("chat", True)):
        llm = gguf_ext.load(place / f"{name}.gguf", **OPTIONS)
        chat = Chat(llm, max_tokens=12, plain=plain)
        assert not chat.templated
        assert ["".join(chat.ask("One two")) for _ in range(2)] == [wanted, wanted]
        llm.close()


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(chat):
    pieces = chat.ask("One two")
    first = next(pieces)
    pieces.close()
    assert chat.statistics["finish_reason"] == "interrupted"
    assert chat._messages == [{"role": "user", "content": "One two"}, {"role": "assistant", "content": first}]
    assert "".join(chat.ask("three"))


def test_commands_switch_mix_and_scale(chat):
    assert chat.adapters() == "adapters: math off, code off"
    assert chat.command("/adapter math") == "adapters: math on (1), code off"
    with_math = "".join(chat.ask("One two"))
    assert chat.command("/scale 0.5") == "adapters: math on (0.5), code off"
    assert chat.command("/adapter code") == "adapters: math off, code on (1)"
    assert chat.command("/adapter math") == "adapters: math on (0.5), code off"  # its scale is remembered
    assert chat.command("/adapter math:1 code:0.25") == "adapters: math on (1), code on (0.25)"
    assert chat.command("/adapter") == "adapters: math on (1), code on (0.25)"
    assert chat.command("/adapter none") == "adapters: math off, code off"
    chat.command("/reset")
    without = "".join(chat.ask("One two"))
    chat.command("/reset")
    chat.command("/adapter math:1")
    assert "".join(chat.ask("One two")) == with_math != without
    assert all(name in chat.command("/help") for name in ("/adapter", "/scale", "/reset", "/quit"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/adaptr math", "is unknown: did you mean '/adapter'"),
        ("/adapter mth", "did you mean 'math'"),
        ("/adapter math:much", "'much' is no number"),
        ("/scale", "takes one number"),
        ("/scale 0.5", "needs an active adapter"),
    ],
)
def test_wrong_commands_are_named_and_change_nothing(chat, line, words):
    with pytest.raises(GGUFError, match=words):
        chat.command(line)
    assert chat.llm.active_adapters == {}


def test_too_long_a_conversation_and_a_broken_template(chat, place):
    words = r"conversation of \d{3,} tokens does not fit context=256: use /reset, or give a larger --context"
    with pytest.raises(GGUFError, match=words):
        list(chat.ask("word " * 300))
    assert chat._messages == []
    assert "".join(chat.ask("One two"))
    with pytest.raises(GGUFError, match="the prompt is empty"):
        list(chat.ask(""))
    llm = gguf_ext.load(place / "broken.gguf", **OPTIONS)
    with pytest.raises(RuntimeFailedError, match=r"chat template of .*no system role.*--plain"):
        list(Chat(llm).ask("One"))
    llm.close()


def test_an_answer_ends_with_the_context(chat, place, monkeypatch):
    """Also where it ends within a character, for whose rest llama-cpp-python would wait without counting."""
    begun = chat.llm.tokenize("é".encode(), add_bos=False)[0]
    assert len(chat.llm.detokenize([begun])) == 1
    monkeypatch.setattr(chat.llm, "sample", lambda *args, **options: begun)
    chat.max_tokens = 10_000
    assert "".join(chat.ask("One two")) == ""
    assert (chat.statistics["finish_reason"], chat.llm.n_tokens) == ("length", 256)


def test_adapter_arguments(tmp_path):
    assert parse_adapter("math=a/b.gguf") == ("math", tmp_path.__class__("a/b.gguf"), 1.0)
    assert parse_adapter("m=b.gguf:0.5")[1:] == (tmp_path.__class__("b.gguf"), 0.5)
    assert parse_adapter("m=b.gguf:-2")[2] == -2
    odd = tmp_path / "odd:7"
    odd.touch()
    assert parse_adapter(f"m={odd}")[1:] == (odd, 1.0)  # a file that is called so
    assert parse_adapter(f"m={odd}:7")[1:] == (odd, 7.0)
    for wrong in ("math", "=b.gguf", "math="):
        with pytest.raises(GGUFError, match="is no NAME=FILE"):
            parse_adapter(wrong)


def test_one_answer_from_a_prompt_or_a_pipe(place):
    arguments = [str(place / "chat.gguf"), "--max-tokens", "8", "--threads", "1"]
    given = [*arguments, "--adapter", f"math={place}/math.gguf", "--adapter", f"code={place}/code.gguf:0"]
    asked = CliRunner().invoke(chat_command, [*given, "--prompt", "One two", "--json"])
    assert asked.exit_code == 0, asked.output
    found = json.loads(asked.stdout)
    assert found["adapters"] == {"math": 1.0}
    assert set(found) == {"prompt", "answer", "adapters", "seconds", "finish_reason"}
    piped = CliRunner().invoke(chat_command, given, input="One two\n")
    assert piped.stdout == found["answer"] + "\n"
    bare = CliRunner().invoke(chat_command, arguments, input="One two\n")
    assert bare.stdout != piped.stdout
    assert CliRunner().invoke(chat_command, arguments, input="").exit_code == 2
    binary = CliRunner().invoke(chat_command, arguments, input=b"\xff\xfe")
    assert (binary.exit_code, "is not UTF-8 text" in binary.stderr) == (2, True)
    wrong = CliRunner().invoke(chat_command, [*given, "--adapter", "none=none.gguf", "--prompt", "x"])
    assert isinstance(wrong.exception, GGUFError)
    assert CliRunner().invoke(chat_command, ["--help"]).output.count("sqft chat") == 3


class Terminal:
    """A process in a pseudo terminal, as a user sits before it."""

    def __init__(self, *command):
        self._master, slave = pty.openpty()
        ends = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, **ends, start_new_session=True, preexec_fn=_controlling)
        os.close(slave)
        self._text = ""

    def read_until(self, words, seconds=180):
        """What was shown since the last call, up to `words`."""
        end = time.monotonic() + seconds
        while words not in self._text:
            ready, _, _ = select.select([self._master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{words!r} did not come, only {self._text!r}"
            self._text += os.read(self._master, 65536).decode(errors="replace")
        shown, _, self._text = self._text.partition(words)
        return shown + words

    def type(self, text):
        os.write(self._master, text.encode())

    def close(self):
        code = self.process.wait(timeout=60)
        os.close(self._master)
        return code


def _controlling():
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore Ctrl-C
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # ctrl-C reaches the process only through its controlling terminal


@pytest.mark.once
def test_in_a_terminal(place):
    sqft = "from sqft_plugins.cli import main; main()"
    command = [sys.executable, "-c", sqft, "chat", str(place / "chat.gguf"), "--threads", "1"]
    terminal = Terminal(
        *command, "--max-tokens", "100000", "--context", "20000", "--adapter", f"math={place}/math.gguf:0"
    )
    try:
        shown = terminal.read_until("> ")
        assert "chat template. /help lists the commands" in shown
        assert "adapters: math off" in shown
        terminal.type("/adapter math\n")
        terminal.read_until("adapters: math on (1)")
        terminal.type("/adaptr\n")
        terminal.read_until("error: command '/adaptr' is unknown: did you mean '/adapter'")
        terminal.read_until("> ")
        terminal.type("One two\n")
        terminal.read_until("One two")
        time.sleep(1)
        terminal.type("\x03")  # ctrl-C stops the answer, not the conversation
        terminal.read_until("> ")
        terminal.type("/adapter none\n")
        terminal.read_until("adapters: math off")
        terminal.type("/quit\n")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()  # else a failure would leave it answering
