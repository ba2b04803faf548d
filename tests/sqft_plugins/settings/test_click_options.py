"""Options are described once: what a field says is what the command line, its help and the functions say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Literal, get_args, get_origin

import click
import pytest
from click.testing import CliRunner

from gguf_ext.cli.chat import ChatSettings
from gguf_ext.cli.verify import VerifySettings
from sqft_plugins.cli import cli
from sqft_plugins.cli.compact import CompactSettings
from sqft_plugins.cli.demo import DemoOutput
from sqft_plugins.cli.doctor import DoctorSettings
from sqft_plugins.cli.eval import EvalCommand
from sqft_plugins.cli.inspect import InspectSettings
from sqft_plugins.cli.merge import MergeSettings
from sqft_plugins.cli.recover import DenseModel
from sqft_plugins.cli.report import ReportSettings
from sqft_plugins.cli.run import RunSettings
from sqft_plugins.cli.search import StudySettings
from sqft_plugins.cli.verb import AtRank, Output
from sqft_plugins.compress.settings import PruneSettings, QuantizeSettings
from sqft_plugins.demo.settings import DemoSettings
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.settings import EvalSettings
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.recover.settings import RecoverSettings
from sqft_plugins.search.settings import SearchInputs, SearchSettings
from sqft_plugins.settings import Settings, Written, like, option
from sqft_plugins.settings.click_options import options, written_fields
from sqft_plugins.tune.settings import AdapterSettings, TrainInputs, TrainSettings

VERBS = {
    "prune": [PruneSettings, Output],
    "quantize": [QuantizeSettings, Output],
    "recover": [RecoverSettings, DenseModel],
    "train": [TrainInputs, AdapterSettings, TrainSettings, Output],
    "search": [SearchInputs, SearchSettings, StudySettings],
    "extract": [AtRank],
    "merge": [MergeSettings],
    "compact": [CompactSettings],
    "run": [RunSettings],
    "demo": [DemoSettings, DemoOutput],
    "plan": [PlanSettings],
    "eval": [EvalCommand],
    "inspect": [InspectSettings],
    "report": [ReportSettings],
    "doctor": [DoctorSettings],
    "verify": [VerifySettings],
    "chat": [ChatSettings],
}


class Inner(Settings):
    size: int = option(3, "How many.", ge=1, lt=10)
    kind: Literal["a", "b"] = option("a", "Which.")


class Example(Settings):
    name: str = option(..., "Needed.")
    size: int = like(Inner, "size", "Of the inner.")
    ranks: list[int] | None = option(None, "A search space.", commas=True, examples=[[32, 24, 16]])
    files: list[str] = option(list, "Several.")
    parts: dict[str, float | str] = option(dict, "By pattern.", name="--part-of")
    whole: bool = option(True, "Whole.", name="--cut", help="Not whole.")
    loud: bool = option(False, "Loud.")
    quiet: bool = option(True, "Quiet.")
    hidden: int = option(5, "Not an option.", absent=True)


class Extended(Example):
    first: int = option(1, "Stands before the others.")


@pytest.fixture
def run():
    """Runs a command with the options of `Example` → the settings, or the error message."""

    def run(*arguments: str):
        found = []

        @click.command()
        @options(settings=Example)
        def command(settings: Example) -> None:
            found.append(settings)

        try:
            command.main(list(arguments), standalone_mode=False)
        except (click.ClickException, SQFTError) as error:
            return error.format_message() if isinstance(error, click.ClickException) else str(error)
        return found[0]

    return run


def test_only_what_is_written_is_set(run) -> None:
    assert run("--name", "x").model_fields_set == {"name"}
    assert run("--name", "x", "--size", "3").model_fields_set == {"name", "size"}  # the default, but written
    assert run("--name", "x").model_dump() == Example(name="x").model_dump()


def test_each_kind_of_field_is_read(run) -> None:
    line = "--name x --size 9 --ranks 4,2 --files a --files b --part-of q=0.5 --part-of k=2:4 --cut --loud --no-quiet"
    assert run(*line.split()).model_dump() == {
        "name": "x",
        "size": 9,
        "ranks": [4, 2],
        "files": ["a", "b"],
        "parts": {"q": "0.5", "k": "2:4"},
        "whole": False,
        "loud": True,
        "quiet": False,
        "hidden": 5,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Missing option '--name'"),
        ("--name x --size 0", "Invalid value for '--size': 0 is not in the range 1<=x<10"),
        ("--name x --size 10", "10 is not in the range 1<=x<10"),
        ("--name x --ranks 4,b", "'--ranks': '4,b' is no list of whole numbers: write it as 32,24,16"),
        ("--name x --part-of q", "'--part-of': 'q' is no PATTERN=VALUE: write such as down_proj=0.4"),
        ("--name x --hidden 4", "No such option"),
    ],
)
def test_a_refusal_names_the_option_the_value_and_the_remedy(run, line, message) -> None:
    assert message in run(*line.split())


def test_the_options_of_settings_stand_before_those_that_they_extend() -> None:
    names = [name for name, _ in written_fields(Extended)]
    assert names == ["first", *(name for name, _ in written_fields(Example))]


def test_settings_name_every_mistake_in_one_line() -> None:
    with pytest.raises(SQFTError, match=r"size=0: input should be greater.*; kind='c': input should be 'a' or 'b'"):
        Inner.make({"size": 0, "kind": "c"})
    with pytest.raises(SQFTError, match=r"Inner has no key 'sise': did you mean 'size'\?"):
        Inner(sise=4)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_the_fields_say(verb) -> None:
    text = " ".join(CliRunner().invoke(cli, [verb, "--help"], terminal_width=400).output.split())
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    parameters = {parameter.name: parameter for parameter in command.params}
    for name, field in [pair for kind in VERBS[verb] for pair in written_fields(kind)]:
        parameter = parameters[name]
        written = next((mark for mark in field.metadata if isinstance(mark, Written)), Written())
        said = written.help or field.description
        assert said, name
        assert f"{said.strip()}" in text, name
        assert parameter.opts[0] == (written.name or f"--{name.replace('_', '-')}")
        literal = next((a for a in [field.annotation, *get_args(field.annotation)] if get_origin(a) is Literal), None)
        if literal is not None:
            assert tuple(parameter.type.choices) == get_args(literal)  # type: ignore[attr-defined]
        default = field.get_default(call_default_factory=True)
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert parameter.default == default
            assert f"[default: {default}" in text


def test_the_functions_have_the_defaults_of_the_settings() -> None:
    from sqft_plugins.compress.float_model import Calibration
    from sqft_plugins.compress.prune import prune_folder
    from sqft_plugins.compress.quantize import quantize_folder
    from sqft_plugins.evaluate.report import evaluate_model, open_candidate
    from sqft_plugins.search.data import split_items
    from sqft_plugins.tune.train import train_adapter

    pairs = [
        (prune_folder, PruneSettings),
        (quantize_folder, QuantizeSettings),
        (Calibration, PruneSettings),
        (train_adapter, TrainInputs),
        (evaluate_model, EvalSettings),
        (open_candidate, EvalSettings),
        (split_items, SearchSettings),
    ]
    compared = 0
    for function, kind in pairs:
        for name, parameter in inspect.signature(function).parameters.items():
            field = kind.model_fields.get(name)
            if field is None or field.is_required() or parameter.default is parameter.empty or name == "text":
                continue
            default = field.get_default(call_default_factory=True)
            assert parameter.default == (tuple(default) if isinstance(default, list) else default), (function, name)
            compared += 1
    assert compared >= 20


def test_settings_import_no_library_of_models() -> None:
    modules = sorted({kind.__module__ for kinds in VERBS.values() for kind in kinds} | {"sqft_plugins.recipe.sections"})
    heavy = {"torch", "transformers", "peft", "numpy", "datasets", "optuna", "lm_eval"}
    code = f"import sys, {', '.join(modules)}; print(*({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
