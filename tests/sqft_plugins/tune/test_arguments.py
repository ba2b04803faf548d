"""Our settings as Trainer gets them, and TensorBoard's log."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from helpers_train import train

from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.tune import settings
from sqft_plugins.tune import train as training
from sqft_plugins.tune.arguments import trainer_arguments
from sqft_plugins.tune.settings import TrainSettings


def test_tensorboard_gets_the_losses(pruned, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = train(pruned, tmp_path / "out", tensorboard=str(tmp_path / "log"), eval_fraction=0.2, eval_every=5)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.value for event in log.Scalars("train/loss")] == pytest.approx(report["losses"])
    assert [event.step for event in log.Scalars("eval/loss")] == [0, 5, 10]


def test_tensorboard_without_its_package_is_refused_at_once(pruned, tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    monkeypatch.setattr(training, "load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(DependencyError, match=r"--tensorboard log .* pip install 'sqft-plugins\[tensorboard\]'"):
        train(pruned, tmp_path / "out", tensorboard="log")


def test_a_file_is_no_place_for_the_log(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: name)  # with or without the package
    monkeypatch.setattr(training, "load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(SQFTError, match=r"--tensorboard .*/file is a file, a folder goes there"):
            train(pruned, tmp_path / "out", tensorboard=str(place))


def test_trainer_is_told_of_checkpointing_under_the_name_that_it_has(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        arguments = trainer_arguments(
            TrainSettings.make({"gradient_checkpointing": True}), tmp_path, torch.float32, evaluated=False, begun=False
        )

    assert arguments.gradient_checkpointing
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
