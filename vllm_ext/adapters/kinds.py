"""What can be done with each kind of adapter: judged in the API server, loaded in the worker.

Dense ones are at home here (load.py). The value planes (planes/handler.py) serve quantization-aware ones. A masked
delta has full rank, which no LoRA kernel can serve: it is refused with the way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sqft_plugins.adapter.folder import AdapterKind
from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.checks import check_values
from vllm_ext.adapters.folder import ServedAdapter
from vllm_ext.adapters.names import AdapterName, Variant

NO_PIPELINE = "adapters are not served with pipeline parallelism yet, use --tensor-parallel-size"


class Handler(Protocol):
    """How one kind is served."""

    def check(self, folder: ServedAdapter, rank: str | None, base: Path | None, settings: Any = None) -> None:
        """Before a request is admitted: raises SQFTError for what this server cannot serve. base: the model's folder,
        None where it is not a folder of this machine. settings: vllm's VllmConfig, None where no engine is known."""
        ...

    def load(self, folder: ServedAdapter, rank: str | None, request: Any, worker: Any) -> Any:
        """In each worker: vllm's LoRAModel with the id `request.lora_int_id` for vllm's WorkerLoRAManager `worker`."""
        ...


HANDLERS: dict[AdapterKind, Handler] = {}


def handler(folder: ServedAdapter) -> Handler:
    """Raises SQFTError with the way out where the kind is not served."""
    if "dense" not in HANDLERS:
        raise SQFTError(
            f"adapter {folder.name}: the plug-in is not loaded in this process: make the LLM first, and leave "
            "VLLM_PLUGINS unset or name sqft in it"
        )
    if folder.kind not in HANDLERS:
        raise SQFTError(f"adapter {folder.name} is {full_rank(folder)}")
    return HANDLERS[folder.kind]


def check(folder: ServedAdapter, asked: AdapterName | Variant, base: Path | None, settings: Any = None) -> None:
    """Raises SQFTError where the adapter is not served as it is asked for: at that rank, with that strength. The rest
    is as in `Handler.check`."""
    handler(folder).check(folder, asked.rank, base, settings)
    if asked.strength in (0, 1):
        return
    if folder.kind != "dense":
        raise SQFTError(
            f"adapter {folder.name} is {folder.kind}: its codes are the model, and between them and the base's there "
            f"are none, so it has no strength {asked.strength:g}: ask for it without one, or with *0 for the base"
        )
    dtype = None if settings is None else settings.lora_config.lora_dtype
    check_values(folder, dtype, asked.strength)


def full_rank(folder: ServedAdapter) -> str:
    """Why an adapter of a kind without a handler, masked ones among them, is not served, and the way out."""
    return (
        f"{folder.kind}: what it adds has full rank and cannot be served as a LoRA. "
        f"Merge it (sqft merge BASE {folder.source or folder.path} --rank heuristic --out DIR) and serve DIR"
    )


def check_parallel(settings: Any) -> None:
    """Raises SQFTError for pipeline parallelism: the server would be ready, and end at the first request. settings:
    vllm's VllmConfig."""
    size = getattr(getattr(settings, "parallel_config", None), "pipeline_parallel_size", 1)
    if size > 1:
        raise SQFTError(f"--pipeline-parallel-size {size}: {NO_PIPELINE}")
