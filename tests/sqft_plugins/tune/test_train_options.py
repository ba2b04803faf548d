"""Runs with options: packing, parts of a batch, gradient checkpointing, evaluation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_train import EXAMPLES, FILES, train

from sqft_plugins.checkpoint import load_tokenizer
from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune import train as training
from sqft_plugins.tune.data import IGNORED, tokenize
from sqft_plugins.tune.examples import Example


@pytest.fixture(scope="module")
def plain(pruned, tmp_path_factory):
    """A run without options: its folder and report."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    return folder, train(pruned, folder)


def test_a_packed_run_takes_the_steps_of_an_unpacked_one(pruned, plain, tmp_path) -> None:
    report = train(pruned, tmp_path / "packed", packing=True)
    assert report["losses"] == pytest.approx(plain[1]["losses"], rel=1e-4)  # the order of sums, through ten steps
    assert report["losses"] != plain[1]["losses"]


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


def test_over_codes_alone_it_is_told_that_they_move_slowly(int4, pruned, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(training, "load_base", lambda *a, **k: (_ for _ in ()).throw(SQFTError("far enough")))
    for base, adapter in ((int4, {}), (pruned, {"grid": str(int4)})):
        with pytest.raises(SQFTError, match="far enough"):
            train(base, tmp_path / "out", adapter={"quantization_aware": True, **adapter})
        assert ("codes alone, which move slowly" in capsys.readouterr().err) == (base is int4)


def test_a_file_in_the_place_of_the_output_is_refused_at_once(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    (tmp_path / "out").write_text("")
    with pytest.raises(SQFTError, match=r"--out .*out is a file, a folder goes there"):
        training.train_adapter(pruned, tmp_path / "out", EXAMPLES, AdapterSettings(), TrainSettings(), overwrite=True)
