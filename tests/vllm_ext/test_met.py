"""An engine in a process of its own that was started for a model of others, and is then given an adapter of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_adapters import write_adapter
from safetensors.torch import load_file

SCRIPT = """
import json, sys
from helpers_met import state

if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model, adapters = sys.argv[1:]
    llm = LLM(
        model=model, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, enable_lora=True,
        max_loras=2, max_lora_rank=8, enable_prefix_caching=False, seed=0,
    )

    def ask(*loras):
        prompt = {"prompt_token_ids": [2, *range(20, 30)]}
        wanted = SamplingParams(temperature=0, max_tokens=4, logprobs=1)
        outputs = llm.generate([prompt] * len(loras), wanted, lora_request=list(loras), use_tqdm=False)
        return [[list(output.outputs[0].token_ids), output.outputs[0].cumulative_logprob] for output in outputs]

    def states():
        return [state(), llm.collective_rpc(state)[0]]

    theirs = LoRARequest("theirs", 5, f"{adapters}/theirs")
    found = {"plain": ask(theirs), "before": states()}
    from vllm_ext.adapters.offline import lora_request

    ours = lora_request(f"{adapters}/ours@r4")
    found |= {"mixed": ask(ours, theirs, None), "after": states()}
    print("RESULT" + json.dumps(found))
"""


def run(model: Path, adapters: Path, **settings: str) -> dict:
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        **settings,
    }  # fmt: skip
    script = adapters / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(model), str(adapters)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.slow
@pytest.mark.vllm
def test_adapters_of_others_meet_vllm_as_it_is_until_one_of_ours_comes(tiny_float, tmp_path) -> None:
    model, adapters = tiny_float("llama"), tmp_path / "adapters"
    shapes = {name: tensor.shape for name, tensor in load_file(model / "model.safetensors").items()}
    modules = {name[:-7]: (shape[1], shape[0]) for name, shape in shapes.items() if name.endswith("_proj.weight")}
    write_adapter(adapters / "ours", modules)
    write_adapter(adapters / "theirs", modules, r=4, choices=None, peft_type="LORA", seed=3)
    found = run(model, adapters, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert not any(own for process in found["before"] for own in process.values())
    user, engine = found["after"]
    assert user["_validate_lora"]
    assert all(own for name, own in engine.items())

    # as where a directory is served, and every patch was there from the beginning
    expected = run(model, adapters, VLLM_ENABLE_V1_MULTIPROCESSING="0", SQFT_ADAPTERS_DIR=str(adapters))
    assert expected["before"][0] == expected["after"][0] == dict.fromkeys(engine, True)
    for mine, theirs in zip(found["plain"] + found["mixed"], expected["plain"] + expected["mixed"], strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], abs=1e-3)
    assert found["mixed"][0] != found["mixed"][1] != found["mixed"][2]
