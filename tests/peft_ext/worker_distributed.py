"""What each of the two processes of test_model_distributed.py runs; writes its findings to rank0.json, rank1.json.

`python worker_distributed.py FOLDER` with torchrun's variables. FOLDER/base is a sparse model, FOLDER/adapter an
adapter over it, FOLDER/one a checkpoint folder of a run in one process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from helpers_peft import fill_adapter
from helpers_training import RESUMES, STEPS, make_config, train
from peft import PeftModel, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from peft_ext.model import sqft_layers
from sqft_plugins.checkpoint import load_model
from sqft_plugins.errors import SQFTError

FOLDER = Path(sys.argv[1])
TOKENS = torch.randint(4, 600, (2, 8), generator=torch.Generator().manual_seed(5))


def base():
    return AutoModelForCausalLM.from_pretrained(FOLDER / "base")


def tuned(**changes):
    return fill_adapter(get_peft_model(base(), make_config(**changes)))


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for block in model.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def weight(model) -> torch.Tensor:
    found = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data
    return found.full_tensor() if hasattr(found, "full_tensor") else found


# --- FSDP2 by hand, against the same model unsharded in this process ---


def evaluated() -> dict:
    """Differences of logits, also after the adapter has changed in evaluation mode; copies of weights kept."""
    whole, sharded = tuned().eval(), shard(tuned()).eval()
    first = (logits(whole) - logits(sharded)).abs().max()
    with torch.no_grad():
        for model in (whole, sharded):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(2)
    second = (logits(whole) - logits(sharded)).abs().max()
    kept = [layer._cached_weight for _, layer in sqft_layers(sharded.base_model.model, "default")]
    return {"differences": [float(first), float(second)], "copies": sum(copy is not None for copy in kept)}


def three_steps(model) -> list[float]:
    """Losses of three steps of SGD."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def checkpointed(use_reentrant: bool) -> dict:
    """Losses of three steps of SGD with gradient checkpointing, whole and sharded, at the same drawn ranks."""
    losses = []
    for place in (lambda model: model, shard):
        torch.manual_seed(7)
        model = place(tuned().train())
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.enable_input_require_grads()
        losses.append(three_steps(model))
    return {"whole": losses[0], "sharded": losses[1]}


def on_grid(path: Path, rounding: str) -> dict:
    """Losses of three steps of SGD through the grid of a folder or file, whole and sharded, and logits afterwards."""
    losses, after = [], []
    for place in (lambda model: model, shard):
        torch.manual_seed(7)
        config = make_config(quantization_aware=True, rounding=rounding)
        model = place(fill_adapter(get_peft_model(load_model(path, torch.float32), config)).train())
        losses.append(three_steps(model))
        after.append(logits(model.eval()))
    return {"whole": losses[0], "sharded": losses[1], "difference": float((after[0] - after[1]).abs().max())}


def merged() -> dict:
    whole, sharded = tuned(), shard(tuned())
    before = weight(whole).clone()
    whole.merge_adapter()
    sharded.merge_adapter()
    same = torch.equal(weight(whole), weight(sharded))
    changed = not torch.equal(weight(whole), before)
    sharded.unmerge_adapter()
    return {"merged": same, "changed": changed, "unmerged": torch.equal(weight(sharded), before)}


def refused() -> dict:
    messages = {}
    for name, call in {
        "late": lambda: get_peft_model(fully_shard(base(), mesh=init_device_mesh("cpu", (2,))), make_config()),
        "safe": lambda: shard(tuned()).merge_adapter(safe_merge=True),
    }.items():
        try:
            call()
        except SQFTError as error:
            messages[name] = str(error)
    return messages


def loaded_once() -> dict:
    """Only the first process has the weights; the others load the adapter over zeros and get the weights later.

    transformers leaves these zeros; from 5.24 on it leaves the weights that every process has read.
    """
    switches = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    os.environ.update(switches)
    try:
        model = base()
    finally:
        for name in switches:
            del os.environ[name]
    if dist.get_rank() > 0:
        for parameter in model.parameters():
            parameter.data.zero_()
    PeftModel.from_pretrained(model, FOLDER / "adapter")
    return {"zeros": float((model.model.layers[0].mlp.up_proj.base_layer.weight == 0).float().mean())}


# --- Trainer, under DDP and under FSDP2 ---


def trained(name: str, **options) -> dict:
    watch = train(base(), FOLDER / name, processes=2, **options)
    return {"losses": watch.losses, "ranks": watch.ranks, "parameters": sorted(watch.parameters)}


def trained_sharded() -> dict:
    """accelerate 1.15 ignores an FSDP plugin on CPUs; with the state that it sets on GPUs it shards here too."""
    original, plugins = AcceleratorState.__init__, []

    def set_state(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugins.extend([fsdp_plugin] if fsdp_plugin else [])
        if plugins:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[0]

    AcceleratorState._reset_state()
    AcceleratorState.__init__ = set_state
    settings = {"version": 2, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "cpu_ram_efficient_loading": True}
    try:
        return trained("fsdp", arguments={"fsdp": True, "fsdp_config": settings})
    finally:
        AcceleratorState.__init__ = original


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {
        "evaluated": evaluated(),
        "checkpointed": [checkpointed(use_reentrant) for use_reentrant in (True, False)],
        "grids": {
            f"{path.name}, {rounding}": on_grid(path, rounding)
            for path in sorted((FOLDER / "grids").iterdir())
            for rounding in ("nearest", "compensated")
        },
        "merged": merged(),
        "refused": refused(),
        "loaded_once": loaded_once(),
        "ddp": trained("ddp"),
        "ddp_fixed": trained("ddp_fixed", config={"rank_choices": None}),
        "continued": trained("one", steps=STEPS, resume=True, config={"rank_choices": None}) if RESUMES else None,
        "fsdp": trained_sharded(),
    }
    (FOLDER / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
