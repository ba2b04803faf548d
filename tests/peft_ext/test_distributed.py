"""Two processes under DDP draw the same ranks, whatever their own random state, and get the same gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, pathlib, runpy, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
tests = {path.stem: path for path in map(pathlib.Path, json.loads(sys.argv[1]))}
make_model = runpy.run_path(str(tests["conftest"]))["make_model"]
helpers = runpy.run_path(str(tests["helpers_peft"]))
TARGETS, fill_adapter, sparsify = (helpers[name] for name in ("TARGETS", "fill_adapter", "sparsify"))
from peft import get_peft_model
from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers

dist.init_process_group("gloo")
rank = dist.get_rank()
config = SQFTConfig(r=8, lora_alpha=16, rank_choices=[8, 6, 4], share_rank="module", target_modules=TARGETS)
model = fill_adapter(get_peft_model(sparsify(make_model("llama")), config)).train()
wrapped = DistributedDataParallel(model, find_unused_parameters=False)
torch.manual_seed(100 + rank)  # as dropout and data workers would leave it: another state in each process
tokens = torch.randint(4, 600, (2, 8))
steps = []
for _ in range(4):
    wrapped(input_ids=tokens, labels=tokens).loss.backward()
    steps.append([layer.elastic["default"].sampled for _, layer in sqft_layers(model.base_model.model, "default")])
gradients = [float(p.grad.double().sum()) for p in model.parameters() if p.grad is not None]
print("RESULT" + json.dumps({"ranks": steps, "gradients": gradients, "tokens": tokens.tolist()}))
dist.destroy_process_group()
"""


def test_processes_draw_alike(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    helpers = json.dumps([str(here.parent / "conftest.py"), str(here / "helpers_peft.py")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), helpers],
            env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    results = []
    for run in runs:
        out, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors[-2000:]
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT")]
        results.append(json.loads(line.removeprefix("RESULT")))
    first, second = results
    assert first["tokens"] != second["tokens"]  # each had its own data
    assert first["ranks"] == second["ranks"]
    assert len({tuple(step) for step in first["ranks"]}) > 1
    assert first["gradients"] == second["gradients"]  # averaged over both
