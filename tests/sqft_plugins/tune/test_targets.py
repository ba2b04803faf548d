"""Target modules are layers of the model."""

from __future__ import annotations

import pytest
from helpers_train import train

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import AdapterSettings
from sqft_plugins.tune import train as training
from sqft_plugins.tune.targets import check_targets


def test_target_modules_are_layers_of_the_model_before_it_is_loaded(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    for wanted in (["c_attn"], [], "c_.*", "self_attn[."):
        with pytest.raises(SQFTError, match=r"target_modules.*(choose among q_proj, |is no regular expression)"):
            train(pruned, tmp_path / "out", adapter={"target_modules": wanted})
    assert check_targets(["q_proj", "c_attn"], pruned) == ["c_attn"]
    assert check_targets(r".*\.1\.mlp\..*", pruned) == []
    everything = AdapterSettings.make({"target_modules": ["all-linear"]}).target_modules
    assert (everything, check_targets(everything, pruned)) == ("all-linear", [])
