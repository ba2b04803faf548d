"""What isolation.py does to vLLM's scheduler and workers, without an engine; test_load_engine.py has the engines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_ext.adapters import isolation

pytestmark = pytest.mark.vllm


def test_an_adapter_that_another_worker_could_not_load_fails_too(monkeypatch):
    """The scheduler sees the output of one tensor-parallel worker only."""
    theirs = torch.tensor([0, 1, 1], dtype=torch.int32)  # of the adapters 3, 5 and 8

    def all_reduce(flags, operation, group):
        flags.copy_(torch.maximum(flags, theirs))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for size, found in ((2, [8]), (1, [])):
        monkeypatch.setattr(
            isolation, "get_tp_group", lambda size=size: SimpleNamespace(world_size=size, cpu_group=None)
        )
        assert isolation.failed_elsewhere({5}, [3, 5, 8]) == found


@pytest.mark.parametrize("second", [False, True], ids=["first runner", "second runner"])
def test_blocks_are_cleared_by_the_model_runner_that_can(monkeypatch, second):
    """vLLM's second one ends the engine when it is told to and was not made to."""
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32)
    manager = SimpleNamespace(kv_cache_spec=spec, _record_new_block_ids=False)
    managers = SimpleNamespace(coordinator=SimpleNamespace(single_type_managers=[manager]))
    scheduler = SimpleNamespace(needs_kv_cache_zeroing=False, use_v2_model_runner=second, kv_cache_manager=managers)
    added = []
    monkeypatch.setattr(isolation.add_request, "_original", lambda _, request: added.append(request))

    isolation.add_request.function(scheduler, "a request")

    assert added == ["a request"]
    assert [scheduler.needs_kv_cache_zeroing, manager._record_new_block_ids] == [not second] * 2
