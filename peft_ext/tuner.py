"""PEFT's adapters as `sqft train | extract | merge` use them: `sqft` and, for comparison, plain `lora`.

What each method is for stands in `sqft_plugins.plugins.protocols.Tuner`.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from peft_ext.checks import check_token_indices
from peft_ext.config import SQFTConfig
from peft_ext.grids import check_grid
from peft_ext.model import SQFTModel, sqft_layers
from peft_ext.registry import LoraLayer
from peft_ext.rest import listed
from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.initialisations import CONVERT, is_repeated
from sqft_plugins.adapter.lora_config import pattern_value, sub_adapter_alpha
from sqft_plugins.adapter.tensor_names import CODES_OF, in_base, patch_name
from sqft_plugins.checkpoint import open_model
from sqft_plugins.elastic import Rank, configuration
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.progress import say
from sqft_plugins.structure import beside_the_text


class PeftTuner:
    """What both adapter types share."""

    name: str

    def load(self, model: Any, adapter: Path, grid: Path | None = None) -> nn.Module:
        """Raises MismatchError for a base with another mask or grid, CheckpointError for one of another shape and for
        damaged weights."""
        _ = AdapterFolder(adapter).pairs
        config = PeftConfig.from_pretrained(str(adapter))
        if grid is not None:
            if not getattr(config, "quantization_aware", False):
                raise SQFTError(f"--grid {grid} is for a quantization-aware adapter, {adapter} is not: leave it out")
            config.grid = str(grid)

        check_token_indices(model, config)
        init = getattr(config, "init_lora_weights", True)
        if not is_repeated(init):
            raise SQFTError(
                f"adapter {adapter} has init_lora_weights={init!r}, which changed the base weight as loading does not "
                f"repeat: {CONVERT}"
            )

        try:
            return PeftModel.from_pretrained(model, str(adapter), config=config).eval()
        except RuntimeError as error:
            if "size mismatch" not in str(error):  # out of memory, say
                raise
            first = str(error).strip().split("\n")[-1].strip()
            raise CheckpointError(
                f"adapter {adapter} does not fit this base ({first[:160]}): load it on its own base"
            ) from error

    def search_space(self, adapter: Path) -> tuple[list[str], list[int]]:
        folder = AdapterFolder(adapter)
        return folder.linears, folder.rank_choices

    def extract(self, adapter: Path, target: Path, rank: Rank) -> Mapping[str, int]:
        """Raises SQFTError for a rank outside the search space and for an adapter whose rank is fixed."""
        folder = AdapterFolder(adapter)
        if not folder.is_elastic:
            raise SQFTError(
                f"adapter {adapter} has the fixed rank {folder.rank_choices[0]}: there is no sub-adapter to extract"
            )
        ranks = configuration(rank, folder.linears, folder.rank_choices)

        tensors = dict(folder.read())
        for pair, A, B in folder.read_pairs(ranks):
            tensors[pair.a], tensors[pair.b] = A.contiguous(), B.contiguous()
        for name in [name for name in tensors if CODES_OF in name]:
            module, _, patch = in_base(name).partition(CODES_OF)
            if patch != patch_name(ranks[module]):
                del tensors[name]
        save_file(tensors, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        sub_adapter_config(PeftConfig.from_pretrained(str(adapter)), ranks).save_pretrained(str(target))
        return ranks

    def grid_of(self, adapter: Path, base: Path) -> Path | None:
        return AdapterFolder(adapter).grid_over(base)


class SQFTTuner(PeftTuner):
    """SQFT adapters: masked or dense, of fixed or elastic rank, over a float base or through an INT4 grid."""

    name = "sqft"

    def check(self, base: Path, settings: Any) -> None:
        """Raises SQFTError for a field that cannot work, for a quantization-aware adapter without an INT4 folder, and
        for another masked adapter over an INT4 base."""
        config, folder = self._config(settings), open_model(base)
        if config.quantization_aware:
            check_grid(folder, config)
        elif config.sparse and folder.grid is not None:
            raise SQFTError(
                f"model {base} is {folder.grid.label}, and a masked adapter cannot merge back to it: train with "
                "--quantization-aware, or with --dense and keep the adapter unmerged"
            )

    def attach(self, model: Any, settings: Any) -> nn.Module:
        with _no_advice():
            tuned = get_peft_model(model, self._config(settings, model))
        _begin_from(tuned, settings.init_adapter)
        return self._on_grid(tuned)

    def load(self, model: Any, adapter: Path, grid: Path | None = None) -> nn.Module:
        with _no_advice():
            tuned = super().load(model, adapter, grid)
        return self._on_grid(tuned)

    def _on_grid(self, model: Any) -> nn.Module:
        """The model, with the modules that are quantized in the grid's folder but not adapted put on the grid, too:
        what is tuned and judged is what a merge gives."""
        if model.active_peft_config.quantization_aware:
            rest = model.base_model.put_rest_on_grid()
            if rest:
                say(f"{listed(rest)} not adapted: on the grid here, as after a merge")
        return model

    def _config(self, settings: Any, model: Any = None) -> SQFTConfig:
        return SQFTConfig(
            **_lora_options(settings, model),
            rank_choices=settings.rank_choices,
            share_rank=settings.share_rank,
            sparse=settings.sparse,
            quantization_aware=settings.quantization_aware,
            grid=settings.grid,
            rounding=settings.rounding or "nearest",
        )

    def check_settled(self, model: Any) -> None:
        """Raises SQFTError for an adapter that is to settle and has no codes at the rank in force."""
        if model.active_peft_config.rounding == "compensated":
            model.base_model.quantized()

    def settle(self, model: Any, tokens: Tensor) -> None:
        if model.active_peft_config.rounding == "compensated":
            model.base_model.settle(tokens)

    def set_rank(self, model: Any, rank: Rank) -> Mapping[str, int]:
        return model.set_active_rank(rank)

    def drawn_ranks(self, model: Any) -> Mapping[str, int]:
        """Module name → rank of the training step that was begun last; empty where none was drawn."""
        layers = sqft_layers(model.base_model.model, model.active_adapter)
        drawn = {name: layer.elastic[model.active_adapter].ranks.drawn for name, layer in layers}
        return {name: rank for name, rank in drawn.items() if rank is not None}

    def merge(self, model: Any) -> tuple[Any, Mapping[str, Tensor]]:
        tuner: SQFTModel = model.base_model
        masks = tuner.masks() if model.active_peft_config.sparse else {}
        return model.merge_and_unload(), masks

    def quantized(self, model: Any, merged: bool = True) -> Mapping[str, QuantizedWeight]:
        return model.base_model.quantized(merged=merged)


class LoraTuner(PeftTuner):
    """A plain LoRA: dense and of one rank."""

    name = "lora"

    def check(self, base: Path, settings: Any) -> None:
        for field in ("rank_choices", "quantization_aware", "grid", "rounding"):
            if getattr(settings, field):
                raise SQFTError(f"{field} needs --tuner sqft: a plain LoRA has one rank and knows no grid")

    def attach(self, model: Any, settings: Any) -> nn.Module:
        tuned = get_peft_model(model, LoraConfig(**_lora_options(settings, model)))
        _begin_from(tuned, settings.init_adapter)
        return tuned

    def set_rank(self, model: Any, rank: Rank) -> Mapping[str, int]:
        """A plain LoRA has one rank: every named one is it."""
        adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
        return {in_base(name): module.r[model.active_adapter] for name, module in adapted}

    def merge(self, model: Any) -> tuple[Any, Mapping[str, Tensor]]:
        _give_own_weights(model)
        return model.merge_and_unload(), {}

    def quantized(self, model: Any, merged: bool = True) -> Mapping[str, QuantizedWeight]:
        raise SQFTError("a plain LoRA has no codes: it was not trained through a grid")


def _begin_from(model: Any, adapter: str | None) -> None:
    """Gives a new adapter A and B of a plain LoRA over the same layers."""
    if adapter is None:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="tensors of an adapter came without")  # a plain LoRA knows no zeros
        found: Any = set_peft_model_state_dict(model, dict(AdapterFolder(adapter).read()))
    if found.unexpected_keys:
        raise CheckpointError(f"adapter {adapter} has {found.unexpected_keys[0]}, which is not adapted here")


def _lora_options(settings: Any, model: Any = None) -> dict[str, Any]:
    """The fields of a LoraConfig that the verbs set. model: that is adapted; of one that sees images, the language
    model alone, whose layers have the names that those of the tower have, too."""
    beside = [] if model is None else beside_the_text(model)
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": settings.target_modules,
        "exclude_modules": rf"({'|'.join(map(re.escape, beside))})\..*" if beside else None,
        "task_type": "CAUSAL_LM",
    }


def _give_own_weights(model: nn.Module) -> None:
    """Gives every adapted layer that shares its weight (a tied head, a tied embedding) a copy of it: PEFT merges into
    the tensor itself, so that the layer which has it too would be changed as well, and is not before the merge."""
    places = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            weight = getattr(base, "weight", None)
            if isinstance(weight, nn.Parameter) and places[id(weight)] > 1:
                base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without the advice to call put_rest_on_grid, which is taken here anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*put_rest_on_grid")
        yield


def sub_adapter_config(config: Any, ranks: Mapping[str, int]) -> PeftConfig:
    """The configuration of an extracted sub-adapter: a fixed rank, alpha such that the scaling stays alpha / r_max.

    A dense sub-adapter becomes a plain LoRA, which stock PEFT, vLLM and llama.cpp load; a masked one stays SQFT.
    """

    def scaled(alpha: float, rank: int) -> float:
        return sub_adapter_alpha(alpha, rank, config.r, config.use_rslora)

    most = max(ranks.values())
    alpha = scaled(config.lora_alpha, most)
    alphas = {
        module: scaled(pattern_value(config.alpha_pattern, module, config.lora_alpha), rank)
        for module, rank in ranks.items()
    }
    changes: dict[str, Any] = {
        "r": most,
        "lora_alpha": alpha,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != most},
        "alpha_pattern": {m: alphas[m] for m in ranks if (ranks[m], alphas[m]) != (most, alpha)},
    }

    if not isinstance(config, SQFTConfig):
        return replace(config, **changes)
    if config.sparse or config.quantization_aware:
        return replace(config, rank_choices=None, **changes)
    shared = {f.name: getattr(config, f.name) for f in fields(LoraConfig) if f.init and f.name != "peft_type"}
    return LoraConfig(**{**shared, **changes})
