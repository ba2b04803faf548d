"""The prompt of a conversation: token for token what transformers' `apply_chat_template` makes of the model."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import gguf_ext
from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.cli.chat import chat_command
from gguf_ext.errors import RuntimeFailedError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.chat import Chat
from gguf_ext.tokenizer.chat_templates import ChatTemplates, named_templates, with_tokens
from sqft_plugins.errors import SQFTError

KNOWN = pytest.importorskip("llama_cpp.llama_chat_format")
OPTIONS = {"n_ctx": 4096, "n_threads": 1, "n_threads_batch": 1}
MARKS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]"]
SAID = [{"role": "user", "content": "Hello, what is 3 + 4?"}]
TURNS = [*SAID, {"role": "assistant", "content": " 7 "}, {"role": "user", "content": "and\n5 < 6 & 'x' é?"}]
SYSTEM = [{"role": "system", "content": "Be short."}, *TURNS]
TOOL = {"type": "function", "function": {"name": "add", "description": "a < b", "parameters": {"type": "object"}}}
EACH = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATES = {
    "chatml": KNOWN.CHATML_CHAT_TEMPLATE,
    "mistral": KNOWN.MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    "mixtral": KNOWN.MIXTRAL_INSTRUCT_CHAT_TEMPLATE,
    "llama3": KNOWN.LLAMA3_INSTRUCT_CHAT_TEMPLATE,
    "bos by hand": "{{ bos_token }}" + EACH,
    "all special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ cls_token }}"
    "{{ mask_token }}" + EACH,
    "tokens of the model": "{{ image_token }}{% if other_token is defined %}x{% endif %}\n"
    + EACH
    + "{{ image_token }}",
    "names that are not there": "{{ missing }}{% if functions is defined or tool_choice is defined %}x{% endif %}"
    + EACH,
    "documents are none": "{% if documents is none %}none{% endif %}{% if tools is none %}none{% endif %}" + EACH,
    "generation prompt": EACH + "{% if add_generation_prompt %}assistant: {% endif %}",
    "generation tag": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "blocks and blanks": "  {% for m in messages %}\n   {{- m.content }}  \n"
    "  {% if loop.last %}\n!\n  {% endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "json": "{{ messages | tojson(indent=2) }}{{ 'é<' | tojson }}",
    "a macro and a namespace": "{% macro say(m) %}<{{ m.role }}{{ image_token }}>{% endmacro %}"
    "{% set n = namespace(i=0) %}"
    "{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}{{ say(m) }}{{ m['content'] | trim }}{% endfor %}",
    "very long": EACH + "{# " + "x" * 70_000 + " #}" + "y" * 300,
    **{f"{size} bytes": EACH + "z" * (size - len(EACH)) for size in (1023, 1024, 1025, 2048)},
    "no ASCII": "{% for m in messages %}«{{ m.content }}» 你好{% endfor %}",
}


def _save(tokenizer, folder, template=None):
    if template is not None:
        tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(make, kind="byte_level", bos=True, **named):
    tokenizer = make[kind](bos=bos)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in MARKS])
    if not bos:
        tokenizer.bos_token = None
    for name, text in named.items():
        setattr(tokenizer, name, text)
    return tokenizer


def _prompt(llm, messages, **options):
    """The tokens that llama.cpp is given."""
    seen = []
    answer = llm._create_completion
    llm._create_completion = lambda prompt, **rest: (seen.append(list(prompt)), answer(prompt, **rest))[1]
    try:
        llm.create_chat_completion(messages, max_tokens=1, **options)
    finally:
        del llm._create_completion
    return seen[0]


def _wanted(folder, messages, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)


@pytest.fixture(scope="module")
def bases(make, tmp_path_factory):
    """Tokenizer → a loaded model and its folder, whose template the tests change."""
    root = tmp_path_factory.mktemp("prompt")
    kinds = {
        "with bos": _tokenizer(make, sep_token="<unk>"),
        "without bos": _tokenizer(make, bos=False),
        "byte fallback": _tokenizer(make, "fallback", mask_token="<pad>", cls_token="<bos>"),
    }
    return {name: _save(tokenizer, root / name.replace(" ", "-")) for name, tokenizer in kinds.items()}


@pytest.mark.parametrize("base", ["with bos", "without bos", "byte fallback"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_that_of_the_model(bases, tmp_path, base, name):
    folder = bases[base]
    for file in folder.glob("*.jinja"):
        file.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": TEMPLATES[name], "image_token": "<tool>", "model_specific_special_tokens": {}}
    settings["extra_special_tokens"] = {"image_token": "<tool>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")
    llm = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS)
    for messages in (SAID, TURNS, *([] if "tral" in name else [SYSTEM])):
        if (name, base) == ("llama3", "without bos"):  # it adds a name that is not there: so says transformers too
            with pytest.raises(TemplateError, match="'bos_token' is undefined"):
                _wanted(folder, messages)
            with pytest.raises(RuntimeFailedError, match="'bos_token' is undefined"):
                _prompt(llm, messages)
            continue
        assert _prompt(llm, messages) == _wanted(folder, messages)
        text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert ChatTemplates(GGUFFile(tmp_path / "model.gguf")).prompt(messages) == text
    llm.close()
    assert verify_gguf(folder, tmp_path / "model.gguf").exact


def test_a_tool_call_without_a_text_is_rendered_as_the_installed_transformers_does(bases, tmp_path):
    folder = bases["with bos"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for file in folder.glob("*.jinja"):
        file.unlink()
    settings["chat_template"] = "{% for one in messages %}{{ one.role }}={{ one.content }};{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [*SAID, {"role": "assistant", "content": None, "tool_calls": [call]}]
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert ChatTemplates(GGUFFile(tmp_path / "model.gguf")).prompt(messages) == wanted


@pytest.fixture(scope="module")
def named(make, tmp_path_factory):
    """A model with three templates by name."""
    root = tmp_path_factory.mktemp("named")
    texts = {"default": "default " + EACH, "tool_use": "tools {{ tools | tojson }} " + EACH, "rag": "rag " + EACH}
    folder = _save(_tokenizer(make), root / "model", texts)
    export_gguf(folder, root / "model.gguf")
    return folder, root / "model.gguf"


def test_named_templates_are_chosen_as_transformers_chooses(named):
    folder, file = named
    llm = gguf_ext.load(file, **OPTIONS)
    assert _prompt(llm, TURNS) == _wanted(folder, TURNS)
    assert _prompt(llm, TURNS, tools=[TOOL]) == _wanted(folder, TURNS, tools=[TOOL])
    assert _prompt(llm, TURNS, tools=[]) == _wanted(folder, TURNS, tools=[])
    assert _wanted(folder, TURNS) != _wanted(folder, TURNS, tools=[TOOL])
    llm.close()
    llm = gguf_ext.load(file, chat_format="chat_template.rag", **OPTIONS)
    assert _prompt(llm, TURNS, tools=[TOOL]) == _wanted(folder, TURNS, chat_template="rag")
    llm.close()
    assert GGUFFile(file).metadata["tokenizer.chat_templates"] == ["rag", "tool_use"]


def test_templates_by_name_without_a_default_are_told_apart(make, tmp_path):
    folder = _save(_tokenizer(make), tmp_path / "model", {"rag": EACH, "tool_use": EACH})
    export_gguf(folder, tmp_path / "model.gguf")
    llm = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS)
    with pytest.raises(GGUFError, match="no chat template 'default', only rag, tool_use"):
        llm.create_chat_completion(SAID)
    assert not Chat(llm).templated
    llm.close()


BROKEN = {
    "unclosed": "{% for m in messages %}{{ m.content }}",
    "no tag": "{% nonsense %}",
    "a brace too few": "{{ messages[0].content }",
    "raises": "{{ raise_exception('only\nusers') }}",
    "undefined": "{{ missing.attribute.deep }}",
    "adds none": "{{ 'a' + missing_content }}",
    "type error": "{{ 1 + 'a' }}",
    "divides by zero": "{{ 1 // 0 }}",
    "unknown filter": "{{ 'a' | nothing }}",
    "imports": "{% include 'other' %}",
    "escapes the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "endless": "{{ range(10**9) | list }}",
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nothing": "{% if false %}x{% endif %}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_line_when_it_is_used_and_none_before(bases, tmp_path, name):
    folder = bases["with bos"]
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": BROKEN[name]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")
    llm = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS)
    assert llm("Hello", max_tokens=1)["choices"]
    with pytest.raises(GGUFError, match="chat template of") as caught:
        llm.create_chat_completion(SAID, max_tokens=1)
    assert "\n" not in str(caught.value)
    llm.close()


def test_the_command_refuses_a_broken_template_in_a_line_and_completes_plainly(bases, tmp_path):
    folder = bases["with bos"]
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": BROKEN["unclosed"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")
    asked = [str(tmp_path / "model.gguf"), "--prompt", "Hello", "--max-tokens", "2", "--threads", "1"]
    refused = CliRunner().invoke(chat_command, asked)
    assert isinstance(refused.exception, SQFTError)
    assert "--plain" in str(refused.exception)
    assert CliRunner().invoke(chat_command, [*asked, "--plain"]).exit_code == 0


def test_a_file_without_a_template_has_no_chat_but_completes(bases, tmp_path):
    folder = bases["with bos"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_gguf(folder, tmp_path / "model.gguf")
    llm = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS)
    with pytest.raises(GGUFError, match="has no chat template"):
        llm.create_chat_completion(SAID)
    assert llm("Hello", max_tokens=1)["choices"]
    llm.close()
    llm = gguf_ext.load(tmp_path / "model.gguf", chat_format="chatml", **OPTIONS)  # what is asked for is done
    assert _prompt(llm, SAID)
    llm.close()


def test_messages_are_asked_for(named):
    with pytest.raises(GGUFError, match="no messages"):
        ChatTemplates(GGUFFile(named[1])).prompt([])


def test_a_text_gets_the_tokens_that_llama_cpp_puts_around_it_and_no_separator(bases, tmp_path):
    """llama-cpp-python appends the separator of any tokenizer that has one."""
    folder = bases["with bos"]
    export_gguf(folder, tmp_path / "model.gguf")
    llm, seen = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS), []
    answer = llm._create_completion
    llm._create_completion = lambda prompt, **rest: (seen.append(prompt), answer(prompt, **rest))[1]
    list(Chat(llm, plain=True, max_tokens=1).ask("Hello <tool>"))
    llm("Hello <tool>", max_tokens=1)
    assert seen == [AutoTokenizer.from_pretrained(folder)("Hello <tool>").input_ids] * 2
    llm.close()


def test_a_long_token_is_read_back_whole(make, tmp_path):
    """llama-cpp-python has room for 32 bytes of a token."""
    tokenizer = _tokenizer(make)
    tokenizer.add_tokens([AddedToken("=" * 40, normalized=False)])
    folder = _save(tokenizer, tmp_path / "model")
    export_gguf(folder, tmp_path / "model.gguf")
    llm = gguf_ext.load(tmp_path / "model.gguf", **OPTIONS)
    tokens = llm.tokenize(("a" + "=" * 40 + "b").encode(), add_bos=False, special=True)
    assert llm.detokenize(tokens) == b"a" + b"=" * 40 + b"b"
    with LlamaSession(tmp_path / "model.gguf", threads=1) as session:
        assert session.detokenize(tokens).encode() == llm.detokenize(tokens)
    llm.close()


def test_the_metadata_is_that_of_llama_cpp_but_whole(named):
    llm = gguf_ext.load(named[1], **OPTIONS)
    theirs = llm._model.metadata()
    assert {key: text for key, text in theirs.items() if llm.metadata[key] != text} == {}
    assert set(theirs) == set(llm.metadata)
    llm.close()


def test_forms_of_templates():
    assert named_templates("x") == {"default": "x"}
    assert named_templates([{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]) == {
        "default": "x",
        "rag": "y",
    }
    for nothing in (None, "", [], {}, [None, {"name": "x"}], {"a": None}, 5):
        assert named_templates(nothing) == {}
    tokens = {"bos_token": "<s>", "image_token": 'a"\\{{ b'}
    assert with_tokens("{{ bos_token }}", tokens) == "{{ bos_token }}"
    assert with_tokens("{% image_token", tokens) == "{% image_token"
    assert with_tokens("image_token", tokens) == "image_token"


def test_a_failing_template_is_told_with_what_it_says(named):
    file = GGUFFile(named[1])
    file.metadata["tokenizer.chat_template"] = "{{ raise_exception('no') }}"
    with pytest.raises(RuntimeFailedError, match=r"fails \(no\): use --plain"):
        ChatTemplates(file).prompt(SAID)
