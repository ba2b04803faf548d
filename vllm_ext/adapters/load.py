"""In the worker: the sub-adapter of a variant, sliced out of its folder as it is read, times its strength.

A sub-adapter of rank r is A[:r] and B[:, :r] with the scaling alpha / r_max of the super-adapter
(sqft_plugins.elastic), where vLLM would take alpha / r. The fused layers take a list of A and B, so each module keeps
its own rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from vllm.lora.layers import LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
from vllm.model_executor.models.utils import is_pp_missing_parameter

from sqft_plugins.adapter.folder import CONFIG, WEIGHTS
from sqft_plugins.adapter.tensor_names import in_file
from sqft_plugins.errors import MismatchError, SQFTError
from vllm_ext import metrics
from vllm_ext.adapters.checks import check_base, check_values
from vllm_ext.adapters.folder import ServedAdapter, open_adapter, open_variant
from vllm_ext.adapters.isolation import nothing_to_add
from vllm_ext.adapters.kinds import check_parallel, handler
from vllm_ext.adapters.names import variant_of
from vllm_ext.patching import replaces

Shape = tuple[int, int]
MAX_RANK = 512
"""The largest --max-lora-rank that vLLM takes."""


class LoraHandler:
    """Adapters that are added as they are: sliced here where the rank is elastic, else read by vLLM itself."""

    def check(self, folder: ServedAdapter, rank: str | None, base: Path | None, settings: Any = None) -> None:
        folder.ranks(rank)
        check_base(folder, base)
        check_values(folder, None if settings is None else settings.lora_config.lora_dtype)
        if settings is not None:
            check_parallel(settings)
            check_limit(folder, rank, settings.lora_config.max_lora_rank)
            check_features(folder, folder.ranks(rank), settings.lora_config)

    def load(self, folder: ServedAdapter, rank: str | None, request: LoRARequest, worker: WorkerLoRAManager) -> Any:
        ranks = folder.ranks(rank)
        check_limit(folder, rank, worker.lora_config.max_lora_rank)
        check_values(folder, worker.lora_config.lora_dtype)
        names = vllm_names(folder, worker)

        if not folder.is_elastic:
            return _load_adapter.original(worker, msgspec.structs.replace(request, lora_path=str(folder.path)))
        check_features(folder, ranks, worker.lora_config)

        loras, dtype = {}, worker.lora_config.lora_dtype
        for pair, A, B in folder.read_pairs({module: ranks[module] for module in names}):
            name, scaling = names[pair.module], folder.scaling(pair.module)  # of the super-adapter: alpha / r_max
            B = (B.float() * scaling).to(dtype)
            loras[name] = LoRALayerWeights(name, ranks[pair.module], 1, A.to(dtype), B, scaling=1.0)
        return LoRAModel(request.lora_int_id, max(ranks.values()), loras)


def check_features(folder: ServedAdapter, ranks: Mapping[str, int], lora_config: Any) -> None:
    """Raises SQFTError for what vLLM's LoRA cannot do: DoRA, biases, trained layers, ..."""
    sliced = {} if not folder.is_elastic else {"r": max(ranks.values()), "rank_pattern": {}}
    try:
        PEFTHelper.from_dict({**folder.config, **sliced}).validate_legal(lora_config)
        for tensor in folder.others:
            parse_fine_tuned_lora_name(tensor)
    except (ValueError, TypeError, AttributeError) as error:
        raise SQFTError(f"adapter {folder.name} cannot be served by vLLM: {error}") from error


def check_limit(folder: ServedAdapter, rank: str | None, limit: int) -> None:
    """Raises SQFTError for a rank above --max-lora-rank."""
    most = folder.max_rank(rank)
    if most > limit:
        fits = [choice for choice in folder.rank_choices if choice <= limit] if folder.is_elastic else []
        other = f", or ask for {folder.name}@r{fits[0]}" if fits else ""
        way = f"start it with --max-lora-rank {most} or more" if most <= MAX_RANK else "merge it (`sqft merge`)"
        raise SQFTError(f"adapter {folder.name} has rank {most}, this server allows {limit}: {way}{other}")


def vllm_names(folder: ServedAdapter, worker: WorkerLoRAManager) -> dict[str, str]:
    """{module in the adapter: module in vLLM} of this worker's part of the model. Raises MismatchError for a module
    that the model does not have, or has in another shape: vLLM itself leaves out or crops such ones and is silent."""
    manager = worker._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = mapper.get_rename_mapper() if mapper is not None else None
    shapes = _layer_shapes(manager)

    names = {}
    for module, pair in folder.pairs.items():
        name, _ = parse_fine_tuned_lora_name(in_file(f"{module}.lora_A.weight"), mapper)
        if name not in shapes:
            if is_pp_missing_parameter(f"{name}.", manager.model):
                continue
            raise MismatchError(
                f"adapter {folder.name} adapts {module}, which the served model does not have or this server does "
                "not adapt: it is an adapter for another base"
            )

        found = shapes[name]
        if found is not None and found != (pair.inputs, pair.outputs):
            raise MismatchError(
                f"adapter {folder.name} has [in, out] = [{pair.inputs}, {pair.outputs}] at {module}, the served model "
                f"{list(found)}: it is an adapter for another base"
            )
        names[module] = name
    return names


def _layer_shapes(manager: Any) -> dict[str, Shape | None]:
    """{module: (in, out) of the whole layer, not of this worker's shard; None where it is not known}, fused layers by
    their parts."""
    shapes: dict[str, Shape | None] = {}
    for name, layer in manager.modules.items():
        base: Any = getattr(layer, "base_layer", None)
        if isinstance(layer, LogitsProcessorWithLoRA):
            shapes[name] = (layer.hidden_size, base.vocab_size)
            continue
        if isinstance(layer, VocabParallelEmbeddingWithLoRA):
            shapes[name] = (base.org_vocab_size, base.embedding_dim)
            continue

        inputs, sizes = getattr(base, "input_size", None), _part_sizes(base)
        parts = manager.packed_modules.get(name)
        if inputs is None or not sizes or (parts and len(parts) != len(sizes)):
            shapes.update(dict.fromkeys(parts or [name]))
        elif parts:
            shapes.update({part: (inputs, size) for part, size in zip(parts, sizes, strict=True)})
        else:
            shapes[name] = (inputs, sum(sizes))
    return shapes


def _part_sizes(layer: Any) -> list[int]:
    """The outputs of each part of a fused layer, or of the layer; empty where it is no linear layer."""
    if hasattr(layer, "total_num_kv_heads"):  # its output_sizes count key and value heads that are there twice
        heads, kv_heads = layer.total_num_heads, layer.total_num_kv_heads
        return [heads * layer.head_size, kv_heads * layer.head_size, kv_heads * layer.v_head_size]
    if hasattr(layer, "output_sizes"):
        return list(layer.output_sizes)
    return [layer.output_size] if hasattr(layer, "output_size") else []


def check_plain(lora_path: str, dtype: Any) -> None:
    """What vLLM does not look at in a LoRA that it loads itself. Raises SQFTError for a file that disagrees with its
    configuration, and for values that are not finite in `dtype`."""
    folder = Path(lora_path)
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        check_values(open_adapter(folder), dtype)


@replaces(WorkerLoRAManager, "no adapter can be served at a rank")
def _load_adapter(self: WorkerLoRAManager, lora_request: LoRARequest) -> LoRAModel:
    variant = variant_of(lora_request.lora_path)
    if variant is None:
        check_plain(lora_request.lora_path, self.lora_config.lora_dtype)
        return _load_adapter.original(self, lora_request)

    folder = open_variant(variant)
    if variant.strength == 0:
        return nothing_to_add(lora_request.lora_int_id)  # so the answers are the base's, bit for bit
    lora = handler(folder).load(folder, variant.rank, lora_request, self)
    for layer in lora.loras.values():
        layer.scaling *= variant.strength  # vLLM multiplies B by it
    return lora


@replaces(LRUCacheWorkerLoRAManager, "adapters in memory are not counted")
def add_adapter(self: LRUCacheWorkerLoRAManager, lora_request: LoRARequest) -> bool:
    before = self.list_adapters()
    loaded = add_adapter.original(self, lora_request)
    after = self.list_adapters()
    if before != after:
        metrics.count("variant_cache_loads", len(after - before))
        metrics.count("variant_cache_evictions", len(before - after))
        metrics.gauge("variant_cache_bytes", registered_bytes(self._adapter_manager))
    return loaded


def registered_bytes(manager: Any) -> int:
    """Bytes of the LoRA weights of all adapters that vLLM's LoRAModelManager holds."""
    layers = [layer for lora in manager.list_adapters().values() for layer in lora.loras.values()]
    return sum(_bytes(layer.lora_a) + _bytes(layer.lora_b) for layer in layers)


def _bytes(tensor: Any) -> int:
    """Of a tensor, or of the list of them that a fused layer has (None for a part without one)."""
    if isinstance(tensor, list | tuple):
        return sum(_bytes(part) for part in tensor)
    return 0 if tensor is None else tensor.nbytes
