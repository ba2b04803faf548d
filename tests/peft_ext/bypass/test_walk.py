"""A parent that reads `weight` past the adapter: refused by what the parent's forward pass does."""

import ast
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DebertaConfig,
    DebertaModel,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForXVector,
    WavLMConfig,
    WavLMModel,
)

from peft_ext import SQFTConfig
from sqft_plugins.errors import SQFTError

IDS = torch.arange(8)[None]


def sparse(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data[:, ::2] = 0
    return model.eval()


def adapt(model: nn.Module, *targets: str) -> PeftModel:
    return get_peft_model(sparse(model), SQFTConfig(r=4, target_modules=list(targets), init_lora_weights=False)).eval()


class Parent(nn.Module):
    """Two layers; `tp` as in the configuration of a model."""

    def __init__(self, tp: int = 1) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList([self.q, self.k])
        self.settings = SimpleNamespace(pretraining_tp=tp)


class Direct(Parent):
    def forward(self, x):
        return F.linear(x, self.q.weight) + self.k(x)


class Fused(Parent):
    def forward(self, x):
        return F.linear(x, torch.cat([layer.weight for layer in (self.q, self.k)]))


class ByAlias(Parent):
    def forward(self, x):
        layer = self.q
        weight = layer.weight.data.t()
        return x @ weight


class InALoop(Parent):
    def forward(self, x):
        for _, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight)
        return x


class InAMethod(Parent):
    def forward(self, x):
        return self._project(self.q, x)

    def _project(self, layer, x):
        return F.linear(x, layer.weight, layer.bias)


def project(layer, x):
    return F.linear(x, layer.weight)


class InAFunction(Parent):
    def forward(self, x):
        return project(self.q, x)


class InParts(Parent):
    """As Llama's own code did in transformers 4."""

    def forward(self, x):
        if self.settings.pretraining_tp > 1:
            parts = self.q.weight.split(8 // self.settings.pretraining_tp, dim=0)
            x = torch.cat([F.linear(x, part) for part in parts], dim=-1)
        else:
            x = self.q(x)
        return x


class Inherited(InParts):
    def forward(self, x):
        return super().forward(x) * 2


class OnlyInEvaluation(Parent):
    def forward(self, x):
        if self.training:
            return self.q(x)
        return F.linear(x, self.q.weight, self.q.bias)


class WhereAKernelIs(Parent):
    def forward(self, x, fast=None):
        return self.q(x) if fast is None else F.linear(x, self.q.weight)


class ByName(Parent):
    def forward(self, x):
        return F.linear(x, getattr(self.q, "weight"))  # noqa: B009


class Grandparent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Asking()

    def forward(self, x):
        return F.linear(x, self.block.q.weight)


class Asking(Parent):
    """Looks at the weight, as many models do, and calls the layer."""

    def forward(self, x):
        if isinstance(self.q.weight, torch.Tensor) and x.dtype != self.q.weight.dtype and self.q.weight is not None:
            x = x.to(self.q.weight.dtype).reshape(-1, self.q.weight.shape[1])
        self.q.weight.data.clamp_(-100, 100)
        return self.q(x) * self.q.weight.size(0)


class Early(Parent):
    def forward(self, x):
        if self.settings.pretraining_tp == 1:
            return self.q(x)
        return F.linear(x, self.q.weight)


READS = [Direct, Fused, ByAlias, InALoop, InAMethod, InAFunction, OnlyInEvaluation, WhereAKernelIs, ByName, Grandparent]


@pytest.mark.parametrize("kind", READS)
def test_a_parent_that_reads_the_weight_is_refused(kind) -> None:
    with pytest.raises(
        SQFTError, match=rf"matches \S*q: {kind.__name__} reads that weight itself.*exclude_modules=.*q"
    ):
        adapt(kind(), "q")


@pytest.mark.parametrize("kind", [InParts, Inherited, Early])
def test_a_read_under_a_condition_counts_where_the_condition_holds(kind) -> None:
    adapt(kind(tp=1), "q")
    with pytest.raises(SQFTError, match=f"{kind.__name__} reads that weight itself"):
        adapt(kind(tp=2), "q")


def test_a_refused_adapter_leaves_the_model_as_it_was() -> None:
    model = Direct()
    with pytest.raises(SQFTError):
        adapt(model, "k", "q")
    assert type(model.k) is nn.Linear
    assert type(model.q) is nn.Linear


@pytest.mark.parametrize(("kind", "target"), [(Asking, "q"), (Direct, "k")])
def test_what_is_called_is_adapted_and_merges_to_the_same(kind, target) -> None:
    model, x = adapt(kind(), target), torch.randn(2, 8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        unmerged = model(x)
        assert not torch.allclose(unmerged, _base(model, x))
        assert torch.allclose(unmerged, model.merge_and_unload()(x), atol=1e-5)


def _base(model: PeftModel, x: torch.Tensor) -> torch.Tensor:
    with model.disable_adapter():
        return model(x)


def encoder(**options) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, **options), 1)


@pytest.mark.parametrize("target", ["linear1", "linear2"])
def test_torchs_encoder_is_refused_where_it_has_a_fast_path(target) -> None:
    with pytest.raises(SQFTError, match=r"reads that weight itself.*by TransformerEncoderLayer"):
        adapt(encoder(batch_first=True), target)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "activation": torch.tanh}])
def test_torchs_encoder_is_adapted_where_it_has_none(options) -> None:
    model, x = adapt(encoder(**options), "linear1", "linear2"), torch.randn(5, 3, 32)
    with torch.no_grad():
        unmerged = model(x)
        assert not torch.allclose(unmerged, _base(model, x), atol=1e-3)
        assert torch.allclose(unmerged, model.merge_and_unload()(x), atol=1e-5)


def test_the_output_of_torchs_attention_is_refused() -> None:
    with pytest.raises(SQFTError, match=r"reads that weight itself.*by MultiheadAttention"):
        adapt(nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64), 1), "out_proj")


def bloom(**options) -> BloomForCausalLM:
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, **options))


@pytest.mark.parametrize("target", ["dense", "dense_4h_to_h"])
def test_bloom_is_refused_only_where_it_computes_in_slices(target) -> None:
    for options in ({}, {"slow_but_exact": True}, {"pretraining_tp": 2}):
        adapt(bloom(**options), target)
    adapt(bloom(slow_but_exact=True, pretraining_tp=2), "query_key_value")
    with pytest.raises(SQFTError, match=r"bloom reads that weight itself.*by Bloom(Attention|MLP)"):
        adapt(bloom(slow_but_exact=True, pretraining_tp=2), target)


def tiny_mamba() -> nn.Module:
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4))


def wavlm() -> nn.Module:
    return WavLMModel(WavLMConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32))


def xvector() -> nn.Module:
    small = {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    return Wav2Vec2ForXVector(
        Wav2Vec2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, **small)
    )


def rwkv(**options) -> nn.Module:
    return RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, **options))


@pytest.mark.parametrize(
    ("make", "target", "parent"),
    [
        (wavlm, "q_proj", "WavLMAttention"),
        (xvector, "kernel", "TDNNLayer"),
        (rwkv, "output", "RwkvModel"),  # it halves the weights in place, once in evaluation
    ],
)
def test_parents_of_transformers_that_read_a_weight_are_refused(make, target, parent) -> None:
    with pytest.raises(SQFTError, match=f"reads that weight itself.*by {parent}"):
        adapt(make(), target)


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    )


def deberta() -> nn.Module:
    return DebertaModel(
        DebertaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    )


@pytest.mark.parametrize(
    ("make", "target", "inputs"),
    [
        (t5, "wo", {"input_ids": IDS, "decoder_input_ids": IDS}),
        (deberta, "in_proj", {"input_ids": IDS}),
        (lambda: rwkv(rescale_every=0), "output", {"input_ids": IDS}),
    ],
)
def test_models_that_only_look_at_a_weight_are_adapted(make, target, inputs) -> None:
    model = adapt(make(), target)
    with torch.no_grad():
        unmerged = model(**inputs)[0]
        with model.disable_adapter():
            base = model(**inputs)[0]
        assert not torch.allclose(unmerged, base, atol=1e-4)
        assert torch.allclose(unmerged, model.merge_and_unload()(**inputs)[0], atol=1e-5)


def test_a_parent_without_source_is_said_not_to_be_checked() -> None:
    code = """
class Hidden(Parent):
    def forward(self, x):
        return F.linear(x, self.q.weight)
class Quiet(Parent):
    def forward(self, x):
        return self.q(x)
"""
    scope = dict(globals())
    exec(code, scope)
    with pytest.warns(UserWarning, match="Hidden has no source here, so it was not checked"):
        adapt(scope["Hidden"](), "q")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(scope["Quiet"](), "q")


@pytest.mark.parametrize("make", [lambda: encoder(batch_first=True), tiny_mamba], ids=["encoder", "mamba"])
def test_what_the_refusal_says_to_leave_out_is_enough(make) -> None:
    settings = {"r": 4, "target_modules": "all-linear"}
    with pytest.raises(SQFTError) as caught:
        get_peft_model(sparse(make()), SQFTConfig(**settings))
    excluded: list[str] = []
    for _ in range(3):  # each refusal names the layers of one parent
        excluded += ast.literal_eval(str(caught.value).split("exclude_modules=")[1])
        try:
            adapted = get_peft_model(sparse(make()), SQFTConfig(**settings, exclude_modules=excluded))
        except (SQFTError, ValueError) as error:
            if "excluded" in str(error):  # nothing is left, as PEFT says
                return
            caught.value.args = error.args
            continue
        assert not any("conv" in name for name in excluded)
        assert any("lora_A" in name for name, _ in adapted.named_parameters())
        return
    raise AssertionError(excluded)
