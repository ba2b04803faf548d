"""The options of `sqft train`: packing, accumulation, gradient checkpointing, evaluation, dtypes, TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
from helpers_train import EXAMPLES, FILES, PLAIN, train

from sqft_plugins.checkpoint import ModelFolder, load_tokenizer
from sqft_plugins.cli import main
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings, arguments, dtypes
from sqft_plugins.tune import train as training
from sqft_plugins.tune.data import IGNORED, Collator, Example, tokenize
from sqft_plugins.tune.loss import answer_logits, answer_loss
from sqft_plugins.tune.loss_plot import smoothed
from sqft_plugins.tune.packing import PackingCollator, check_packing, fill_rows
from sqft_plugins.tune.targets import check_targets

LENGTHS = (3, 1, 9, 5, 12, 2, 40, 7)
PACKED = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3", "gpt2")
"""Families that see where an example ends; OPT and Bloom do not."""


@pytest.fixture(scope="module")
def plain(pruned, tmp_path_factory):
    """A run without options: its folder and report."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    return folder, train(pruned, folder)


# --- packing ---


def some_rows() -> list[dict[str, list[int]]]:
    """Examples of random tokens; every token of the third and the fourth one is learned, also their first."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(4, 600, (length,), generator=generator).tolist()
        prompt = 0 if number in (2, 3) else length // 2
        rows.append({"input_ids": tokens, "labels": [IGNORED] * prompt + tokens[prompt:]})
    return rows


def test_rows_are_filled_and_never_overfull() -> None:
    rows = fill_rows(LENGTHS, 40)
    assert sorted(index for row in rows for index in row) == list(range(len(LENGTHS)))
    assert [sum(LENGTHS[index] for index in row) for row in rows] == [40, 39]
    assert PackingCollator(0)(some_rows())["input_ids"].shape == (2, 40)


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    labels = batch.pop("labels")
    model.zero_grad()
    loss = answer_loss(*answer_logits(model, model.get_output_embeddings(), batch, labels))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_the_loss_and_the_gradients_of_the_same_examples_unpacked(tiny_model, family) -> None:
    model = tiny_model(family).float()
    check_packing(model)
    loss, gradients = loss_and_gradients(model, Collator(0)(some_rows()))
    packed_loss, packed_gradients = loss_and_gradients(model, PackingCollator(0)(some_rows()))
    torch.testing.assert_close(packed_loss, loss, rtol=1e-6, atol=0)
    # the order of sums; 0.02 (Bloom) and 0.36 (OPT) where the examples see each other
    assert (packed_gradients - gradients).norm() < 1e-5 * gradients.norm()


@pytest.mark.parametrize("family", ["opt", "bloom"])
def test_a_family_whose_examples_would_see_each_other_is_refused(tiny_model, family) -> None:
    with pytest.raises(SQFTError, match=f"packing: in a model of type {family} the examples of one row would see"):
        check_packing(tiny_model(family))


def test_a_packed_run_takes_the_steps_of_an_unpacked_one(pruned, plain, tmp_path) -> None:
    report = train(pruned, tmp_path / "packed", packing=True)
    assert report["losses"] == pytest.approx(plain[1]["losses"], rel=1e-4)  # the order of sums, through ten steps
    assert report["losses"] != plain[1]["losses"]


# --- memory ---


def test_a_batch_in_parts_takes_the_steps_of_the_whole(pruned, tmp_path) -> None:
    """At one rank, since every part draws anew. The parts have different numbers of learned tokens."""
    fixed = {"rank_choices": None}
    whole = train(pruned, tmp_path / "whole", adapter=fixed)
    parts = train(pruned, tmp_path / "parts", adapter=fixed, gradient_accumulation=4)
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_gradient_checkpointing_changes_no_bit(pruned, plain, tmp_path) -> None:
    train(pruned, tmp_path / "checkpointed", gradient_checkpointing=True)
    for name in FILES:
        assert (tmp_path / "checkpointed" / name).read_bytes() == (plain[0] / name).read_bytes()


# --- evaluation ---


def test_the_held_out_loss_is_that_of_all_logits_and_training_does_not_feel_it(pruned, plain, tmp_path) -> None:
    held_out = [Example("Question: one?\nAnswer:", " two three four"), Example("", "text"), Example("Two:", " 3")] * 2
    report = train(pruned, tmp_path / "out", held_out=held_out, eval_every=4)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (plain[0] / name).read_bytes()
    assert [row["step"] for row in report["evaluations"]] == [0, 4, 8, 10]
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for name, rank in (("loss", 6), ("loss_at_max_rank", 8)):
        model.set_active_rank(rank)
        total, tokens = 0.0, 0
        for row in tokenize(held_out, load_tokenizer(pruned), 512):
            with torch.no_grad():
                logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(row["labels"][1:])
            total += float(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
            tokens += int((targets != IGNORED).sum())
        assert report["evaluations"][-1][name] == pytest.approx(total / tokens, rel=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| loss of 6 held-out examples | {report['evaluations'][-1]['loss']:.3f} (last, step 10) |" in card


def test_the_best_adapter_is_the_one_of_its_step(pruned, tmp_path) -> None:
    """What is held out contradicts what is learned, so its loss rises; at a constant rate a shorter run is the
    beginning of a longer one."""
    held_out = [Example(example.prompt, " no such thing") for example in EXAMPLES[:8]]
    steady = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 3e-2}
    report = train(pruned, tmp_path / "best", held_out=held_out, eval_every=1, keep="best", **steady)
    losses = [row["loss"] for row in report["evaluations"]]
    assert 0 < report["kept_step"] == losses.index(min(losses)) < 10
    train(pruned, tmp_path / "short", steps=report["kept_step"], **steady)
    assert (tmp_path / "best" / FILES[0]).read_bytes() == (tmp_path / "short" / FILES[0]).read_bytes()


# --- dtypes, TensorBoard, the picture ---


def test_the_dtype_is_chosen_with_a_reason(pruned, tiny_gemma, monkeypatch) -> None:
    float32, bfloat16 = ModelFolder(pruned), ModelFolder(tiny_gemma)
    monkeypatch.setattr(dtypes, "fast_dtype", lambda: torch.float32)
    assert dtypes.choose_dtype(bfloat16, False, "auto")[1] == "bfloat16 would not be faster on this machine"
    assert dtypes.choose_dtype(bfloat16, True, "bfloat16") == (torch.bfloat16, "as asked")
    monkeypatch.setattr(dtypes, "fast_dtype", lambda: torch.bfloat16)
    assert dtypes.choose_dtype(float32, False, "auto") == (torch.bfloat16, "fast on this machine")
    dtype, reason = dtypes.choose_dtype(float32, True, "auto")
    assert (dtype, reason) == (torch.float32, "bfloat16 would round the float weights of which the codes are made")
    with pytest.raises(SQFTError, match=r"dtype=bfloat16 would round the float weights .*: use auto or float32"):
        dtypes.choose_dtype(float32, True, "bfloat16")


def test_tensorboard_gets_the_losses(pruned, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = train(pruned, tmp_path / "out", tensorboard=str(tmp_path / "log"), eval_fraction=0.2, eval_every=5)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.value for event in log.Scalars("train/loss")] == pytest.approx(report["losses"])
    assert [event.step for event in log.Scalars("eval/loss")] == [0, 5, 10]


def test_tensorboard_without_its_package_is_refused_at_once(pruned, tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    monkeypatch.setattr(training, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(DependencyError, match=r"--tensorboard log .* pip install 'sqft-plugins\[tensorboard\]'"):
        train(pruned, tmp_path / "out", tensorboard="log")


def test_over_codes_alone_it_is_told_that_they_move_slowly(int4, pruned, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(training, "load_model", lambda *a, **k: (_ for _ in ()).throw(SQFTError("far enough")))
    for base, adapter in ((int4, {}), (pruned, {"grid": str(int4)})):
        with pytest.raises(SQFTError, match="far enough"):
            train(base, tmp_path / "out", adapter={"quantization_aware": True, **adapter})
        assert ("codes alone, which move slowly" in capsys.readouterr().err) == (base is int4)


def test_a_file_is_no_place_for_the_log(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda name: name)  # with or without the package
    monkeypatch.setattr(training, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(SQFTError, match=r"--tensorboard .*/file is a file, a folder goes there"):
            train(pruned, tmp_path / "out", tensorboard=str(place))


def test_the_smooth_line_is_the_mean_around_each_step() -> None:
    assert smoothed([1.0, 2.0, 6.0]) == [1.5, 3.0, 4.0]
    assert smoothed([4.0]) == [4.0]


# --- before the model is loaded ---


def test_target_modules_are_layers_of_the_model_before_it_is_loaded(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    for wanted in (["c_attn"], [], "c_.*", "self_attn[."):
        with pytest.raises(SQFTError, match=r"target_modules.*(choose among q_proj, |is no regular expression)"):
            train(pruned, tmp_path / "out", adapter={"target_modules": wanted})
    assert check_targets(["q_proj", "c_attn"], pruned) == ["c_attn"]
    assert check_targets(r".*\.1\.mlp\..*", pruned) == []
    everything = AdapterSettings.make({"target_modules": ["all-linear"]}).target_modules
    assert (everything, check_targets(everything, pruned)) == ("all-linear", [])


def test_a_file_in_the_place_of_the_output_is_refused_at_once(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    (tmp_path / "out").write_text("")
    with pytest.raises(SQFTError, match=r"--out .*out is a file, a folder goes there"):
        training.train_adapter(pruned, tmp_path / "out", EXAMPLES, AdapterSettings(), TrainSettings(), overwrite=True)


# --- the command line ---


def test_the_command_line_takes_chats_from_several_files(pruned, tmp_path, monkeypatch, capsys) -> None:
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Four."}]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 4))
    (tmp_path / "chat.jinja").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    command = f"train {pruned} --data a.jsonl --data b.jsonl --eval-data b.jsonl --chat-template chat.jinja --epochs 2"
    modules = ["--target-modules", "q_proj, v_proj, c_attn"]
    with pytest.raises(SystemExit) as done:
        main([*command.split(), *modules, "--batch-size", "4", "--eval-every", "2", "--packing", "--out", "adapter"])
    assert not done.value.code
    output = capsys.readouterr()
    assert "8 examples in 4 steps of 4, base in float32" in output.err.replace("\n", " ")
    assert "no layer is called c_attn: the other target modules are adapted" in output.err.replace("\n", " ")
    assert "held out: " in output.out
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert (report["examples"], report["held_out"], len(report["losses"])) == (8, 4, 4)
    assert report["trained_parameters"] == 2 * 32 * (64 + 64 + 64 + 32)  # A and B of q and v in each of two blocks
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == PLAIN


def test_every_setting_has_an_option_with_its_choices() -> None:
    from sqft_plugins.cli.train import command

    options = {parameter.name: parameter for parameter in command.params}
    names = set(options)
    assert set(TrainSettings.model_fields) <= names
    assert set(AdapterSettings.model_fields) <= names
    assert options["sparse"].opts == ["--dense"]
    for name, field in TrainSettings.model_fields.items():
        if get_origin(field.annotation) is Literal:
            assert tuple(options[name].type.choices) == get_args(field.annotation)
