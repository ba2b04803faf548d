"""PEFT's adapters as `sqft train | extract | merge` use them: `sqft` and, for comparison, plain `lora`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_ext.config import SQFTConfig
from peft_ext.model import SQFTModel
from sqft_plugins.elastic import Rank, configuration, slice_lora, sub_adapter_alpha
from sqft_plugins.errors import CheckpointError, SQFTError

PREFIX = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")


class PeftTuner:
    """What both adapter types share."""

    name: str

    def load(self, model: Any, adapter: Path) -> nn.Module:
        """Raises MismatchError for a base with another mask, CheckpointError for one of another shape."""
        try:
            return PeftModel.from_pretrained(model, str(adapter)).eval()
        except RuntimeError as error:  # torch's word for weights that do not fit
            first = str(error).strip().split("\n")[-1].strip()
            raise CheckpointError(
                f"adapter {adapter} does not fit this base ({first[:160]}): load it on its own base"
            ) from error

    def search_space(self, adapter: Path) -> tuple[list[str], list[int]]:
        config = PeftConfig.from_pretrained(str(adapter))
        return adapter_modules(read_tensors(adapter)), getattr(config, "rank_choices", None) or [config.r]

    def extract(self, adapter: Path, target: Path, rank: Rank) -> Mapping[str, int]:
        """Raises SQFTError for a rank outside the search space and for an adapter whose rank is fixed."""
        config = PeftConfig.from_pretrained(str(adapter))
        modules, choices = self.search_space(adapter)
        if len(choices) == 1:
            raise SQFTError(f"adapter {adapter} has the fixed rank {choices[0]}: there is no sub-adapter to extract")
        tensors = read_tensors(adapter)
        ranks = configuration(rank, modules, choices)
        for module, value in ranks.items():
            keys = [f"{PREFIX}{module}{end}" for end in ENDS]
            A, B = slice_lora(tensors[keys[0]], tensors[keys[1]], value)
            tensors.update(zip(keys, (A.contiguous(), B.contiguous()), strict=True))
        save_file(tensors, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        sub_adapter_config(config, ranks).save_pretrained(str(target))
        return ranks


class SQFTTuner(PeftTuner):
    name = "sqft"

    def attach(self, model: Any, settings: Any) -> nn.Module:
        config = SQFTConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
            rank_choices=settings.rank_choices,
            share_rank=settings.share_rank,
            sparse=settings.sparse,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def set_rank(self, model: Any, rank: Rank) -> Mapping[str, int]:
        return model.set_active_rank(rank)

    def merge(self, model: Any) -> tuple[Any, Mapping[str, Tensor]]:
        tuner: SQFTModel = model.base_model
        sparse = model.active_peft_config.sparse
        masks = tuner.masks() if sparse else {}
        return model.merge_and_unload(), masks


class LoraTuner(PeftTuner):
    name = "lora"

    def attach(self, model: Any, settings: Any) -> nn.Module:
        if settings.rank_choices:
            raise SQFTError("rank_choices needs --tuner sqft: a plain LoRA has one rank")
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def set_rank(self, model: Any, rank: Rank) -> Mapping[str, int]:
        """A plain LoRA has one rank: every named one is it."""
        adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
        return {name.removeprefix(PREFIX): module.r[model.active_adapter] for name, module in adapted}

    def merge(self, model: Any) -> tuple[Any, Mapping[str, Tensor]]:
        return model.merge_and_unload(), {}


def read_tensors(adapter: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder. Raises CheckpointError for a damaged file."""
    file = adapter / SAFETENSORS_WEIGHTS_NAME
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the adapter again") from error


def adapter_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """The adapted modules of an adapter's state dict, by their names in the base model."""
    end = ENDS[0]
    return [key.removeprefix(PREFIX).removesuffix(end) for key in tensors if key.endswith(end)]


def sub_adapter_config(config: Any, ranks: Mapping[str, int]) -> PeftConfig:
    """The configuration of an extracted sub-adapter: a fixed rank, alpha such that the scaling stays alpha / r_max.

    A dense sub-adapter becomes a plain LoRA, which stock PEFT, vLLM and llama.cpp load; a masked one stays SQFT.
    """
    alphas = {
        module: sub_adapter_alpha(config.lora_alpha, rank, config.r, config.use_rslora)
        for module, rank in ranks.items()
    }
    most = max(ranks.values())
    changes: dict[str, Any] = {
        "r": most,
        "lora_alpha": sub_adapter_alpha(config.lora_alpha, most, config.r, config.use_rslora),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != most},
        "alpha_pattern": {module: alphas[module] for module, rank in ranks.items() if rank != most},
    }
    if not isinstance(config, SQFTConfig):
        return replace(config, **changes)
    if config.sparse:
        return replace(config, rank_choices=None, **changes)
    shared = {f.name: getattr(config, f.name) for f in fields(LoraConfig) if f.init and f.name != "peft_type"}
    return LoraConfig(**{**shared, **changes})
