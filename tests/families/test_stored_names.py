"""What `save_pretrained` writes of a family, read and written by our names: every tensor, bit for bit.

The families here have names of their own in their files; a slow test takes all that the installed transformers has.
"""

from __future__ import annotations

import pytest
import torch
from helpers_families import CAUSAL, buildable, model_of

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.stored_names import StoredNames
from sqft_plugins.errors import CheckpointError
from sqft_plugins.structure import meta_model

OTHER_NAMES = {
    "mixtral": ["joined", "renamed"], "qwen2_moe": ["joined"], "deepseek_v3": ["joined"], "jamba": ["joined"],
    "nemotron_h": ["joined", "renamed"], "kimi_linear": ["joined", "renamed"], "mimo_v2_flash": ["joined", "renamed"],
    "ernie4_5_moe": ["joined", "renamed"], "granitemoe": ["renamed"], "hrm_text": ["parted", "renamed"],
    "gpt_neox": ["renamed"], "llama": [], "gpt2": [],
}  # fmt: skip


def kinds_of(family: str, path) -> set[str]:
    """Compares all tensors of a family → how its files differ from the model."""
    model = model_of(family)
    model.save_pretrained(path)
    folder = ModelFolder(path)
    names, state = StoredNames(meta_model(path), folder), model.state_dict()

    # from the files
    tied = set(model.all_tied_weights_keys)
    assert [name for name in state if name not in names and name not in tied] == []
    assert names.unknown == []
    for name in names:
        assert torch.equal(names.read(name), state[name]), name

    # to the files
    kinds = set()
    for first in names:
        together = names.parameters(names.sources(first)[0])
        tensors = names.split({name: state[name] for name in together})
        assert set(tensors) == set(names.sources(first))
        for name, tensor in tensors.items():
            assert torch.equal(tensor, folder.tensor(name)), name
        if names.is_one(first):
            kinds |= {"renamed"} if names.is_renamed(first) else set()
            continue
        kinds.add("joined" if len(tensors) > len(together) else "parted")

        # each expert in the parameter
        views = names.expert_views(first, state[first])
        if views is not None:
            assert set(views) == set(tensors)
            for name, view in views.items():
                assert torch.equal(view, tensors[name]), name
                assert view.untyped_storage().data_ptr() == state[first].untyped_storage().data_ptr()
    return kinds


@pytest.mark.parametrize("family", OTHER_NAMES)
def test_every_tensor_is_read_and_written(family, tmp_path) -> None:
    assert kinds_of(family, tmp_path) == set(OTHER_NAMES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", CAUSAL)
def test_every_tensor_of_every_family_is_read_and_written(family, tmp_path) -> None:
    if not buildable(family):
        pytest.skip("not built: see helpers_families")
    kinds_of(family, tmp_path)


def test_what_the_files_lack_is_named(tmp_path) -> None:
    model_of("mixtral").save_pretrained(tmp_path)
    names = StoredNames(meta_model(tmp_path), ModelFolder(tmp_path))
    with pytest.raises(CheckpointError, match=r"has no tensor for model\.layers\.7\.mlp\.gate\.weight"):
        names.read("model.layers.7.mlp.gate.weight")


def test_a_part_of_a_tensor_is_not_written_alone(tmp_path) -> None:
    model = model_of("hrm_text")
    model.save_pretrained(tmp_path)
    names = StoredNames(meta_model(tmp_path), ModelFolder(tmp_path))
    part = next(name for name in names if name.endswith("mlp.gate_proj.weight"))
    with pytest.raises(CheckpointError, match=r"gate_up_proj.weight is also of .*up_proj.weight: give the values of"):
        names.split({part: model.get_parameter(part)})
