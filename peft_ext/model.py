"""SQFTModel: puts SQFT layers into a model, draws the ranks of a training step, sets that of evaluation."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from peft_ext.bypass import BypassedLayers
from peft_ext.checks import (
    check_combination,
    check_token_indices,
    check_weight,
    holds_codes,
    warn_left_out,
    works_alone,
)
from peft_ext.drawing import hook_model, unhook_model
from peft_ext.fields import check_attached
from peft_ext.grids import attach_grids, int4_folder
from peft_ext.layer import Linear
from peft_ext.merged_cache import forget_cache, note_cache
from peft_ext.other_tuners import refuse_other_tuners
from peft_ext.provenance import check_base, is_found, take_in
from peft_ext.registry import BaseTunerLayer, LoraModel
from peft_ext.rest import put_rest_on_grid
from peft_ext.rollback import remember
from peft_ext.saving import crop_padding, note_mask, note_ranks, put_unmerged, write_combined_ranks
from peft_ext.settle import check_within_blocks, settle
from peft_ext.unchecked import FRESH, warn_unchecked
from peft_ext.unmerged import UnmergedWeights
from sqft_plugins.checkpoint.restore import restore_grids
from sqft_plugins.elastic import NAMED_RANKS, Rank, configuration
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.structure import is_conv1d, is_linear


class SQFTModel(LoraModel):
    """The tuner behind `get_peft_model(model, SQFTConfig(...))`."""

    _bypassed: BypassedLayers | None = None

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        known = getattr(model, "peft_config", None)  # of adapters that are there already, the same names among them
        before = dict(known) if isinstance(known, dict) else {}
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except Exception:
            if isinstance(known, dict):
                known.clear()
                known.update(before)
            if not before and hasattr(model, "_hf_peft_config_loaded"):
                vars(model)["_hf_peft_config_loaded"] = False  # transformers' add_adapter sets it too early
            raise

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        """PEFT's hook: the adapted layer in place of `target`. Raises SQFTError for what cannot be adapted."""
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        name = kwargs.get("target_name", "")
        if getattr(lora_config, "_custom_modules", None):
            raise SQFTError(
                "custom modules (_register_custom_module) are not supported: SQFT has its one layer for linears"
            )
        if isinstance(base, nn.Linear) or is_conv1d(base):
            check_weight(base, name)  # first: the layers of other quantizations are nn.Linear, too
        if not is_linear(base):
            raise SQFTError(
                f"target_modules matches {name}, a {type(base).__name__}: SQFT adapts linear layers only, "
                "leave it out with exclude_modules"
            )
        if lora_config.sparse and not lora_config.quantization_aware and holds_codes(base):
            raise SQFTError(
                f"sparse=True over a quantized base ({name}) cannot merge back onto its grid: train through it with "
                "quantization_aware=True, or use sparse=False and keep the adapter unmerged"
            )

        conv1d = is_conv1d(base)
        lora_config.fan_in_fan_out = conv1d
        return Linear(target, adapter_name, config=lora_config, is_target_conv_1d_layer=conv1d, **kwargs)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's hook for each target: leaves out those that the model reads past any adapter."""
        given = inspect.signature(LoraModel._create_and_replace).bind(self, *args, **kwargs).arguments
        if self._bypassed is None:
            self._bypassed = BypassedLayers(self.model)
        if not self._bypassed.leaves_out(given["target"], given["current_key"]):
            super()._create_and_replace(*args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter, or leaves the model as it was and raises.

        1. Refuse what can be refused before anything is changed.
        2. Let PEFT put the layers in.
        3. Find and check what the adapter is made over: masks, or grids.
        4. Note it in the configuration, and hook the model.

        Not in PEFT's _post_injection_hook, which is called for the first adapter of a model only.
        """
        self._bypassed = None
        refuse_other_tuners(model, for_sqft=True)
        restore_grids(model)
        put_back, targeted = remember(model), list(self.targeted_module_names)
        config: Any = self.peft_config[adapter_name]
        meant = getattr(config, "target_modules", None)
        new = config.mask_hash is None or is_found(config.mask_hash)
        found: dict[str, Any] = {"mask_hash": None, "grid_stamp": None}

        try:
            check_attached(self.peft_config[adapter_name])
            check_token_indices(model, self.peft_config[adapter_name])

            super().inject_adapter(model, adapter_name, *args, **kwargs)
            mark_shared_bases(model)

            layers = dict(sqft_layers(model, adapter_name))
            if config.quantization_aware:
                found["mask_hash"], found["grid_stamp"] = attach_grids(model, config, adapter_name, layers)
                if config.rounding == "compensated":
                    check_within_blocks(model, layers)
            elif config.sparse:
                found["mask_hash"] = check_base(UnmergedWeights(layers), config, adapter_name)
            if new:
                warn_left_out(model, meant, layers)
        except Exception:
            put_back()
            self.targeted_module_names[:] = targeted
            self.peft_config.pop(adapter_name, None)
            raise
        finally:
            self._bypassed = None

        shared = any(other is config for name, other in self.peft_config.items() if name != adapter_name)
        config = self.peft_config[adapter_name] = take_in(config, found, shared)
        setattr(config, FRESH, True)
        for name, layer in layers.items():
            layer.elastic[adapter_name].name = name

        if config.rank_choices is not None:
            hook_model(model)
        if note_cache not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(note_cache, with_kwargs=True)
            model.register_forward_hook(forget_cache, always_call=True)
            model.register_load_state_dict_pre_hook(warn_unchecked)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Replicates layers once: PEFT would do it again for each adapter that asks for it."""
        wanted = _pairs(peft_config.layer_replication)
        others: list[Any] = [config for config in self.peft_config.values() if config is not peft_config]
        if not wanted or not others:
            super()._prepare_model(peft_config, model)
        elif wanted not in [_pairs(config.layer_replication) for config in others]:
            raise SQFTError(
                f"layer_replication={peft_config.layer_replication} cannot be done in a model with adapters "
                f"({', '.join(name for name, config in self.peft_config.items() if config is not peft_config)}): they "
                "would be replicated, too. Add it to a model of its own"
            )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activates adapters. Raises SQFTError for a quantization-aware adapter among several."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        aware = [name for name in names if self._is_quantization_aware(name)]
        if aware and len(names) > 1:
            raise works_alone(aware[0], f"activate one adapter, not {list(names)} together")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: Any = "svd",
        *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        """As PEFT's, at the adapters' largest ranks. Raises SQFTError for what cannot be combined exactly."""
        if adapter_name in self.peft_config:  # PEFT returns without a word
            raise SQFTError(f"adapter_name={adapter_name!r} is in use: give the combination a name of its own")
        for name in adapters:
            if self._is_quantization_aware(name):
                raise SQFTError(
                    f"adapter {name!r} is quantization-aware: what it adds depends on the rounding of the whole "
                    "weight, so it cannot be combined. Merge it, or combine adapters trained over the float base"
                )
        configs = {name: self.peft_config[name] for name in adapters if name in self.peft_config}
        layers = [(n, m) for n, m in self.model.named_modules() if isinstance(m, Linear)]
        check_combination(configs, layers, combination_type)

        before: Any = self.peft_config.get(adapters[0])
        if before is not None:
            # PEFT derives the new configuration from the first one: other modules may have other masks, of several
            # nested ranks only the whole can be combined, and alpha = r is the scaling 1 only without rslora
            self.peft_config[adapters[0]] = replace(before, mask_hash=None, rank_choices=None, use_rslora=False)
        try:
            super().add_weighted_adapter(adapters, weights, adapter_name, combination_type, *args, **kwargs)
        finally:
            if before is not None:
                self.peft_config[adapters[0]] = before

        write_combined_ranks(self.peft_config[adapter_name], adapter_name, dict(sqft_layers(self.model, adapter_name)))

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        layers = dict(sqft_layers(model, adapter_name))
        put_unmerged(state_dict, layers)  # of which PEFT takes the embeddings' own
        note_mask(config, layers, adapter_name)
        tensors = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *args, **kwargs)
        crop_padding(tensors, layers, adapter_name)
        note_ranks(config, layers, adapter_name)
        return tensors

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's hook: it takes what the model has a place for, so codes that an adapter has settled to need one."""
        for name, layer in sqft_layers(model, adapter_name):
            if adapter_name in layer.lora_codes:
                layer.settled(adapter_name).make_room(state_dict, f"{name}.lora_codes.")
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    def _is_quantization_aware(self, adapter: str) -> bool:
        return getattr(self.peft_config.get(adapter), "quantization_aware", False)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(LoraModel._unload_and_optionally_merge).bind(self, *args, **kwargs)
        given.apply_defaults()

        names = given.arguments["adapter_names"] or self.active_adapters
        dense = given.arguments["merge"] and not all(getattr(self.peft_config.get(n), "sparse", False) for n in names)
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)

        # a plain model: no hooks of ours, and no stamp of zeros that a dense merge has filled
        unhook_model(model, (note_cache, forget_cache))
        if dense and hasattr(getattr(model, "config", None), "sqft"):
            del model.config.sqft  # the stamp says which weights are zero, and they are not any more
        hooks = model._load_state_dict_pre_hooks
        for key in [key for key, wrapped in hooks.items() if getattr(wrapped, "hook", None) is warn_unchecked]:
            del hooks[key]
        return model

    def set_active_rank(self, rank: Rank, adapter_name: str | None = None) -> dict[str, int]:
        """The rank of evaluation and merging: an int, "max", "median", "min", or {module name or pattern: rank}.

        Acts on `adapter_name`, else on every active adapter; returns module name → rank. Raises SQFTError for a rank
        outside the search space and for a module without a rank. Training goes on sampling.
        """
        if not isinstance(adapter_name, str | None):
            raise SQFTError(
                f"adapter_name={adapter_name!r} is no name of an adapter: set the rank of one after another"
            )

        result: dict[str, int] = {}
        for adapter in [adapter_name] if adapter_name else self.active_adapters:
            layers = self._layers_of(adapter)

            # module → rank
            choices = {name: layer.elastic[adapter].ranks.choices for name, layer in layers.items()}
            fixed = {name: space[0] for name, space in choices.items() if len(space) == 1}
            if fixed and isinstance(rank, str) and rank in NAMED_RANKS:
                ranks = fixed  # all of them, each its own (rank_pattern)
            else:
                ranks = configuration(rank, layers, sorted({r for space in choices.values() for r in space}))

            wrong = [name for name in ranks if ranks[name] not in choices[name]]
            if wrong:
                raise SQFTError(
                    f"rank={ranks[wrong[0]]} cannot be set: {wrong[0]} has the fixed rank {choices[wrong[0]][0]} "
                    f"(rank_pattern of adapter {adapter!r}), use 'max'"
                )

            for name, layer in layers.items():
                layer.elastic[adapter].ranks.chosen = ranks[name]
            result.update(ranks)
        return result

    def _layers_of(self, adapter: str) -> dict[str, Linear]:
        layers = dict(sqft_layers(self.model, adapter))
        if not layers:
            raise SQFTError(
                f"adapter_name={adapter!r} is not an SQFT adapter here: use one of {sorted(self.peft_config)}"
            )
        return layers

    def masks(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Module name → mask (bool [out, in]) of the unmerged base under the adapter."""
        adapter = adapter_name or self.active_adapters[0]
        return {name: layer.base_mask(adapter) for name, layer in sqft_layers(self.model, adapter)}

    def quantized(self, adapter_name: str | None = None, merged: bool = True) -> dict[str, QuantizedWeight]:
        """Module name → INT4 weight of the base with a quantization-aware adapter merged in at its chosen ranks, or,
        with `merged` False, of the base alone. Raises SQFTError for an adapter that is not quantization-aware."""
        adapter = adapter_name or self.active_adapters[0]
        weights = {}
        for name, layer in self._layers_of(adapter).items():
            with layer.at_chosen_rank():
                weights[name] = layer.quantized(adapter, merged)
        return weights

    def settle(
        self, tokens: Tensor, adapter_name: str | None = None, ranks: list[int] | None = None
    ) -> dict[int, list[dict[str, Any]]]:
        """Puts an adapter with `rounding="compensated"` on its grid, after training: from here on it computes with its
        codes, unmerged and merged, until A or B change → rank → a report for each layer.

        tokens: int64 [sequences, length], text of the kind that was trained on. ranks: default, all that it may have.
        Raises SQFTError for an adapter that is rounded in each training step, or with layers outside the blocks.
        """
        adapter = adapter_name or self.active_adapters[0]
        layers = self._layers_of(adapter)
        choices = {rank for layer in layers.values() for rank in layer.elastic[adapter].ranks.choices}
        return settle(self.model, adapter, layers, tokens, sorted(choices, reverse=True) if ranks is None else ranks)

    def put_rest_on_grid(self, adapter_name: str | None = None) -> list[str]:
        """Writes into the base, in place, what the grid's folder or file has otherwise and the adapter does not change,
        so that the model computes what it will after a merge → the names. Nothing to do over a base of codes."""
        adapter = adapter_name or self.active_adapters[0]
        config: Any = self.peft_config[adapter]
        return put_rest_on_grid(self.model, int4_folder(self.model, config), dict(sqft_layers(self.model, adapter)))


def sqft_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Linear]]:
    """(module name in the base model, layer) for every layer that carries `adapter`."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and adapter in module.elastic:
            yield name.replace("_orig_mod.", ""), module  # the same name with and without torch.compile


def mark_shared_bases(model: nn.Module) -> None:
    """Notes in each SQFT layer whether its base module also stands in another place of the model.

    PEFT replaces a module that has two names in the first place only (`named_modules` names it once). The adapter acts
    there alone, unmerged and merged.
    """
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for module in model.modules():
        if isinstance(module, Linear):
            module.base_is_shared = places[id(module.base_layer)] > 1


def _pairs(replication: Any) -> list[tuple[int, int]]:
    """`layer_replication`, which JSON turns into lists."""
    return [(start, end) for start, end in replication or []]
