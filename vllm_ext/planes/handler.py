"""Quantization-aware adapters, served as value planes (the codes of one rank over the base's): checked in the API
server, loaded in the worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.config import CompilationMode, CUDAGraphMode
from vllm.distributed import get_pp_group
from vllm.lora.lora_model import LoRAModel
from vllm.lora.worker_manager import WorkerLoRAManager

from sqft_plugins.adapter.folder import AdapterKind
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import MismatchError, SQFTError
from vllm_ext import metrics
from vllm_ext.adapters.checks import check_base, check_values
from vllm_ext.adapters.folder import ServedAdapter
from vllm_ext.adapters.isolation import nothing_to_add
from vllm_ext.adapters.kinds import check_parallel
from vllm_ext.patching import apply, replaces
from vllm_ext.planes.cache import load_plane, sqft_layers
from vllm_ext.planes.over_int4 import trained_over
from vllm_ext.planes.store import find_plane
from vllm_ext.planes.switch import PlaneSwitch

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest

KIND: AdapterKind = "quantization-aware"


class PlaneHandler:
    """What `vllm_ext.adapters.kinds` asks of a kind of adapters."""

    def __init__(self, switch: PlaneSwitch):
        self.switch = switch

    def check(self, folder: ServedAdapter, rank: str | None, base: Path | None, settings: Any = None) -> None:
        """Finds or builds the plane, so that a worker only has to read it. Raises SQFTError with the way out."""
        ranks = folder.ranks(rank)
        if settings is not None:
            check_parallel(settings)
            check_eager(folder, settings)
        check_values(folder)
        check_base(folder, base)
        if base is not None:
            find_plane(ModelFolder(base), folder.path, ranks, trained_over(folder), folder.source)

    def load(self, folder: ServedAdapter, rank: str | None, request: Any, worker: WorkerLoRAManager) -> LoRAModel:
        """A LoRA that adds nothing; the plane is in the switch."""
        model = worker._adapter_manager.model
        method = served_by(model, folder)
        base = method.config.model_folder()
        if not method.config.is_unchanged():
            raise MismatchError(
                f"adapter {folder.name}: {base.path} has changed since this server loaded it, a plane would be of "
                "another model: start the server again"
            )
        check_eager(folder, method.vllm_config)
        check_values(folder)
        check_base(folder, base.path)

        file = find_plane(base, folder.path, folder.ranks(rank), trained_over(folder))
        name = f"{folder.name}{f'@{rank}' if rank else ''}"
        whole = get_pp_group().world_size == 1
        self.switch.activate(
            worker, request.lora_int_id, file.path.stem, name, lambda grow: load_plane(file, base, model, whole, grow)
        )
        return nothing_to_add(request.lora_int_id)


def check_eager(folder: ServedAdapter, settings: Any) -> None:
    """Raises SQFTError where the model is compiled or recorded in CUDA graphs, as on a GPU by default: which plane a
    token gets is decided in Python at each step, and what was traced would answer with the base. settings: VllmConfig.
    """
    compilation = settings.compilation_config
    if compilation.mode != CompilationMode.NONE or compilation.cudagraph_mode != CUDAGraphMode.NONE:
        raise SQFTError(
            f"adapter {folder.name} is quantization-aware: codes cannot be switched in a compiled model; start "
            "the server with --enforce-eager, or merge the adapter (`sqft merge`)"
        )


def served_by(model: Any, folder: ServedAdapter) -> Any:
    """The SQFTLinearMethod of a layer that this worker has loaded; it knows the INT4 folder and vLLM's settings. Raises
    SQFTError where none was loaded by quantization `sqft`."""
    layers = sqft_layers(model)
    if not layers:
        raise SQFTError(
            f"adapter {folder.name} is quantization-aware, and the served model is not one of our quantized "
            "folders: serve the one that it was trained through"
        )
    return layers[0].quant_method


def patch_steps(switch: PlaneSwitch) -> bool:
    """Has vLLM announce each batch to the switch."""

    @replaces(WorkerLoRAManager, "quantization-aware adapters are refused")
    def set_active_adapters(self: WorkerLoRAManager, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        ids = {request.lora_int_id for request in requests if request}
        metrics.count("variant_cache_hits", len((ids - switch.running) & self.list_adapters()))
        switch.before_step(self, ids)
        set_active_adapters.original(self, requests, mapping)
        switch.step(mapping)

    return apply(set_active_adapters)
