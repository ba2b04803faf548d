"""The options of the export: what a field says is what the command, its help and the functions say.

python -m pytest tests/gguf_ext/test_settings.py
"""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from gguf_ext import GGUFError, export_gguf
from gguf_ext.cli.export import ExportOutput, export_command
from gguf_ext.settings import CHOICES, Options
from sqft_plugins.errors import SQFTError


def test_the_command_has_an_option_for_each_field():
    written = {option.name: option for option in export_command.params if isinstance(option, click.Option)}
    assert set(Options.model_fields) == set(written) - {*ExportOutput.model_fields, "as_json"}
    for name, field in Options.model_fields.items():
        assert written[name].help == field.description
        assert all(choice in f"{field.description} {written[name].metavar}" for choice in CHOICES.get(name, ()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"float_type": "q4_0"}, "float_type='q4_0' is unknown: .*; for INT4 run `sqft quantize` first"),
        ({"embedding_type": "q8"}, "did you mean 'q8_0'"),
        ({"rounding": "alow"}, "did you mean 'allow'"),
        ({"pre": "gpt-2", "template_gguf": "base.gguf"}, "--pre gpt-2: the template has a tokenizer"),
    ],
)
def test_unknown_values_are_refused_by_name(options, words):
    with pytest.raises(GGUFError, match=words):
        Options(**options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "--template-gguf none.gguf is not a file: give the path of a GGUF file"),
        (b"GGUF", "--template-gguf none.gguf has 4 bytes, too few"),
        (b"{}" * 99, "--template-gguf none.gguf does not begin with GGUF"),
    ],
)
def test_a_wrong_template_is_refused_with_the_name_of_its_option(content, words, llama_int4, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "none.gguf").write_bytes(content)
    done = CliRunner().invoke(export_command, [str(llama_int4), "--out", "m.gguf", "--template-gguf", "none.gguf"])
    assert str(done.exception).startswith(words)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(SQFTError, match="has no key 'float': did you mean 'float_type'"):
        Options(float="f32")


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 10**9), ("500M", 5 * 10**8), ("7kb", 7000), ("12", 12), ("1.5G", 15 * 10**8)]
)
def test_sizes_are_in_thousands(text, size):
    assert Options(split_max_size=text).limit == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "2X"])
def test_what_is_no_size_is_refused(text, llama_int4, tmp_path):
    with pytest.raises(GGUFError, match=r"is no size: write such as 2G"):
        export_gguf(llama_int4, tmp_path / "m.gguf", split_max_size=text)
