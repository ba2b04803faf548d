"""Elastic adapters in a real engine, one process, tiny models in float32."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager

import pytest
from helpers_adapters import change, write_adapter, write_configuration
from helpers_patching import restore
from safetensors.torch import load_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.extract import extract_adapter
from vllm_ext.adapters import admission, kinds, load, lora_cpu, offline, patch
from vllm_ext.adapters.folder import open_adapter
from vllm_ext.adapters.offline import lora_request

pytestmark = pytest.mark.vllm
PROMPTS = [[2, 17, 100, 45, 300, 9], [2, 64, 64, 3, 12], [2, 500, 401, 33, 8, 19, 77, 5]]
LORA = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 16, "max_cpu_loras": 4}


def linears(folder) -> dict[str, tuple[int, int]]:
    """module → (in, out) of the decoder's linear layers of a saved model."""
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    return {
        name.removesuffix(".weight"): (shape[1], shape[0])
        for name, shape in shapes.items()
        if name.endswith("_proj.weight")
    }


@pytest.fixture(scope="module")
def adapters(tiny_float, tmp_path_factory):
    """`adapters(family)` → (base, folder of two super-adapters, `math` with a configuration, and a plain LoRA)."""
    made = {}

    def make(family="llama"):
        if family not in made:
            base = tiny_float(family)
            root = tmp_path_factory.mktemp(f"adapters-{family}")
            modules = linears(base)
            write_adapter(root / "math", modules, r=16, choices=(16, 8, 4))
            write_adapter(root / "law", modules, r=16, choices=(16, 12, 4), seed=7, use_rslora=True)
            plain = {name: shape for name, shape in modules.items() if "self_attn" in name}
            write_adapter(root / "plain", plain, r=4, choices=None, peft_type="LORA", seed=3)
            end = next(iter(modules)).rpartition(".")[2]
            write_configuration(root / "math", "searched", {".*": 8, end: 16, ".*mlp.*": 4})
            made[family] = base, root
        return made[family]

    return make


def difference(one, other) -> float:
    """The largest difference of the chosen tokens' log-probabilities; infinite where a token differs."""
    worst = 0.0
    for steps, expected in zip(one, other, strict=True):
        for step, target in zip(steps, expected, strict=True):
            token = next(iter(target))
            if next(iter(step)) != token:
                return float("inf")
            worst = max(worst, abs(step[token] - target[token]))
    return worst


@contextmanager
def stock_vllm():
    """vLLM's own methods, none of ours: what a server without the plug-in runs on a float model."""
    restore(*lora_cpu.REPLACEMENTS, load._load_adapter, admission._validate_lora)
    try:
        yield
    finally:
        patch()


EXTRACTED = {"math@r8": 8, "math": "heuristic", "math@max": "max", "math@searched": None, "law@r12": 12}
"""Name → the rank of `sqft extract`; None: the saved configuration."""


@pytest.fixture(scope="module")
def extracted(adapters, tmp_path_factory):
    """`extracted(family)` → {name: request for the plain LoRA of `sqft extract`}, which vLLM's own loader reads."""

    def make(family):
        _, root = adapters(family)
        out = tmp_path_factory.mktemp("extracted")
        configured = json.loads((root / "math" / "configurations" / "searched.json").read_text())
        for number, (name, rank) in enumerate(EXTRACTED.items()):
            folder = out / name.replace("@", "-")
            extract_adapter(root / name.partition("@")[0], folder, rank or configured)
            assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
            yield name, LoRARequest(f"extracted {name}", 100 + number, str(folder))

    return lambda family: dict(make(family))


@pytest.mark.parametrize("family", ["phi3", "gemma3", "llama"])  # the last one's engine goes on in the tests below
def test_a_variant_is_the_extracted_adapter(family, adapters, extracted, engine, ask):
    base, root = adapters(family)
    llm = engine(base, **LORA)
    for name, request in extracted(family).items():
        ours, theirs = (ask(llm, PROMPTS, lora_request=r) for r in (lora_request(root / name), request))
        assert difference(ours, theirs) < 1e-3, name


def test_a_variant_is_the_extracted_adapter_in_stock_vllm(adapters, extracted, engine, ask):
    base, root = adapters()
    llm = engine(base, **LORA)
    ours = {name: ask(llm, PROMPTS, lora_request=lora_request(root / name)) for name in [*EXTRACTED, "plain"]}
    ours[None] = ask(llm, PROMPTS)
    requests = {**extracted("llama"), "plain": LoRARequest("plain", 1, str(root / "plain")), None: None}
    with stock_vllm():
        llm = engine(base, **LORA, max_num_seqs=15)  # another setting: a new engine
        theirs = {name: ask(llm, PROMPTS, lora_request=request) for name, request in requests.items()}
    for name, answers in ours.items():
        assert difference(answers, theirs[name]) < 1e-3, name
    assert difference(ours["math@r8"], ours["math"]) == 0
    assert difference(ours["math@r8"], ours["math@max"]) > 1e-2


@pytest.mark.parametrize("name", ["math@r8", "plain"])
def test_a_strength_multiplies_what_the_adapter_adds(name, adapters, engine, ask, tmp_path):
    """0 is the base and 1 the adapter, in every bit; others are an adapter whose alpha is as many times as large."""
    base, root = adapters()
    llm = engine(base, **LORA)
    base_answers, whole = ask(llm, PROMPTS), ask(llm, PROMPTS, lora_request=lora_request(root / name))
    for strength, same in ((0, base_answers), (1, whole)):
        assert ask(llm, PROMPTS, lora_request=lora_request(root / f"{name}*{strength}")) == same
    for strength in (0.5, -1.5):
        adapter, _, rank = name.partition("@")
        copy = tmp_path / f"{adapter}-{strength:g}"
        shutil.copytree(root / adapter, copy)
        change(copy, lora_alpha=strength * json.loads((copy / "adapter_config.json").read_text())["lora_alpha"])
        theirs = ask(llm, PROMPTS, lora_request=lora_request(f"{copy}@{rank}" if rank else copy))
        ours = ask(llm, PROMPTS, lora_request=lora_request(root / f"{name}*{strength:g}"))
        assert difference(ours, theirs) < 1e-4
        assert difference(ours, whole) > 1e-2


MIXED = [None, "math@r16", "law@r4", "math@r16*0.5", "math", None, "law@r4", "math@r16"]
"""Base, two adapters, two ranks and two strengths of one of them: four adapters, as many as max_loras."""


@pytest.mark.parametrize("cached", [False, True], ids=["no prefix cache", "prefix cache"])
def test_a_mixed_batch_answers_each_as_alone(cached, adapters, engine, ask):
    base, root = adapters()
    llm = engine(base, **LORA, enable_prefix_caching=cached, block_size=32)
    start = [2, *range(20, 90)]  # more than two blocks, the same for all: only the adapter tells the prefixes apart
    prompts = [[*start, 100 + index] for index in range(len(MIXED))]
    requests = [lora_request(root / name) if name else None for name in MIXED]
    together = ask(llm, prompts, lora_request=requests)
    alone = [ask(llm, [prompt], lora_request=request)[0] for prompt, request in zip(prompts, requests, strict=True)]
    again = ask(llm, prompts[::-1], lora_request=requests[::-1])[::-1]
    for answers in (alone, again):
        assert difference(answers, together) < 1e-3
    assert difference([together[1]], [together[3]]) > 1e-2


def test_an_adapter_that_was_trained_anew_is_another_one(adapters, engine, ask, tmp_path):
    base, root = adapters()
    llm = engine(base, **LORA, enable_prefix_caching=True, block_size=32)
    prompts = [[2, *range(20, 90)]]
    folders = [write_adapter(tmp_path / name, open_modules(root), seed=9) for name in ("other", "own")]
    write_adapter(folders[1], open_modules(root), seed=8)
    old, stat = lora_request(folders[1]), (folders[1] / "adapter_model.safetensors").stat()
    before = ask(llm, prompts, lora_request=old)
    write_adapter(folders[1], open_modules(root), seed=9)
    os.utime(folders[1] / "adapter_model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as tar and rsync do
    with pytest.raises(VLLMValidationError, match=r"own has changed since .*: ask lora_request for it again"):
        ask(llm, prompts, lora_request=old)
    other, own = (ask(llm, prompts, lora_request=lora_request(folder)) for folder in folders)
    assert difference(own, other) < 1e-3
    assert difference(own, before) > 1e-2


def test_variants_have_numbers_of_their_own_even_where_their_hashes_meet(adapters, monkeypatch):
    _, root = adapters()
    monkeypatch.setattr(offline, "_NUMBERED", {})
    taken = lora_request(root / "math@r8").lora_int_id
    monkeypatch.setattr(offline, "_NUMBERED", {taken: "another variant of the same hash", taken + 1: "and one more"})
    names = ["math@r8", "math@r4", "law@r4", "math@r8"]
    numbers = [lora_request(root / name).lora_int_id for name in names]
    assert numbers[0] == numbers[3] == taken + 2
    assert len(set(numbers)) == 3


def test_more_variants_than_slots_take_turns(adapters, engine, ask):
    base, root = adapters()
    llm = engine(base, **LORA)
    names = [f"{name}@r{rank}" for name, ranks in (("math", (16, 8, 4)), ("law", (16, 12, 4))) for rank in ranks]
    requests = [lora_request(root / name) for name in names]
    alone = [ask(llm, PROMPTS[:1], lora_request=request)[0] for request in requests]
    together = ask(llm, [PROMPTS[0]] * 24, lora_request=requests * 4)
    assert difference(together, alone * 4) < 1e-3


def spoiled(root, tmp_path, how):
    """A copy of an adapter that does not fit the model, and what the error says."""
    modules = open_modules(root)
    first = next(iter(modules))
    if how == "narrower":
        modules[first] = (modules[first][0] // 2, modules[first][1])
    elif how == "deeper":
        modules[first.replace("layers.0", "layers.7")] = modules[first]
    elif how == "other names":
        modules = {name.replace("self_attn", "attention"): shape for name, shape in modules.items()}
    rank = 64 if how == "above the limit" else 16
    return write_adapter(tmp_path / how.replace(" ", "-"), modules, r=rank, choices=(rank, 8))


def open_modules(root):
    return {module: (pair.inputs, pair.outputs) for module, pair in open_adapter(root / "math").pairs.items()}


@pytest.mark.parametrize(
    ("how", "rank", "message"),
    [
        ("narrower", "", "adapter for another base"),
        ("deeper", "", "layers.7.*adapter for another base"),
        ("other names", "", "adapter for another base"),
        ("above the limit", "@max", "--max-lora-rank 64 or more, or ask for above-the-limit@r8"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_engine_lives(
    how, rank, message, adapters, engine, ask, tmp_path
):
    base, root = adapters()
    llm = engine(base, **LORA)
    folder = spoiled(root, tmp_path, how)
    request = lora_request(f"{folder}{rank}")
    with pytest.raises(SQFTError, match=message):
        llm.llm_engine.add_lora(request)  # what the API server does before it admits a request
    assert difference(ask(llm, PROMPTS), ask(llm, PROMPTS)) == 0
    good = lora_request(root / "math@r4")
    assert len(ask(llm, PROMPTS, lora_request=good)) == 3


def test_a_rank_within_the_limit_of_an_adapter_above_it_is_served(adapters, engine, ask, tmp_path):
    base, root = adapters()
    folder = spoiled(root, tmp_path, "above the limit")
    assert len(ask(engine(base, **LORA), PROMPTS, lora_request=lora_request(f"{folder}@r8"))) == 3


def test_a_variant_that_is_gone_or_damaged_is_refused_before_it_is_queued(adapters, engine, ask, tmp_path):
    base, root = adapters()
    llm = engine(base, **LORA)
    folder = write_adapter(tmp_path / "fleeting", open_modules(root), r=8, choices=(8, 4))
    request = lora_request(f"{folder}@r4")
    before = ask(llm, PROMPTS, lora_request=request)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(VLLMValidationError, match="damaged or cut off"):
        ask(llm, PROMPTS, lora_request=request)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(VLLMValidationError, match="fleeting"):
        ask(llm, PROMPTS, lora_request=request)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    assert difference(ask(llm, PROMPTS, lora_request=request), before) == 0


def test_masked_and_quantization_aware_adapters_are_never_served_as_loras(adapters, tmp_path, monkeypatch):
    _, root = adapters()
    monkeypatch.setattr("vllm_ext.adapters.kinds.HANDLERS", {"dense": kinds.HANDLERS["dense"]})  # without the planes
    for name, config in {"masked": {"sparse": True}, "qa": {"sparse": True, "quantization_aware": True}}.items():
        folder = write_adapter(tmp_path / name, open_modules(root), **config)
        with pytest.raises(SQFTError, match="sqft merge"):
            lora_request(folder)


# --- an adapter that cannot be loaded when its turn comes ---

ONE_AT_A_TIME = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16, "max_cpu_loras": 1}


@pytest.mark.parametrize(
    "fault",
    [FileNotFoundError(2, "No such file or directory"), OSError(5, "Input/output error"), MemoryError(), KeyError("x"),
     RuntimeError("shape '[3]' is invalid"), SQFTError("adapter law is damaged")],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
def test_an_adapter_that_cannot_be_loaded_fails_its_requests_alone(engine, adapters, monkeypatch, fault):
    """Prefix caching is on: what was computed without the adapter must not be found afterwards."""
    from vllm import SamplingParams

    base, root = adapters()
    llm = engine(base, **ONE_AT_A_TIME, enable_prefix_caching=True)
    prompt = {"prompt_token_ids": [2, *range(10, 90)]}
    wanted = SamplingParams(temperature=0, max_tokens=4, logprobs=1, ignore_eos=True)
    math, law = lora_request(root / "math@max"), lora_request(root / "law@max")
    llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache()
    alone = [llm.generate(prompt, wanted, lora_request=one, use_tqdm=False)[0].outputs[0] for one in (math, None)]
    llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache()
    load = kinds.HANDLERS["dense"].load

    def fails(folder, *rest):
        if folder.path.name == "law":
            raise fault
        return load(folder, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(kinds.HANDLERS["dense"], "load", fails)
        batch = llm.generate([prompt] * 4, wanted, lora_request=[law, math, None, law], use_tqdm=False)
    outputs = [request.outputs[0] for request in batch]
    for index in (0, 3):
        assert outputs[index].finish_reason == "error"
        assert outputs[index].stop_reason.startswith("adapter law@max: ")
        assert str(fault).split("\n")[0] in outputs[index].stop_reason
        assert not outputs[index].token_ids
    assert [list(output.token_ids) for output in outputs[1:3]] == [list(output.token_ids) for output in alone]
    again = llm.generate(prompt, wanted, lora_request=law, use_tqdm=False)[0].outputs[0]
    llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache()
    fresh = llm.generate(prompt, wanted, lora_request=law, use_tqdm=False)[0].outputs[0]
    assert list(again.token_ids) == list(fresh.token_ids)
    assert again.cumulative_logprob == pytest.approx(fresh.cumulative_logprob, abs=1e-4)
    assert list(again.token_ids) != list(alone[1].token_ids)


def test_a_folder_that_is_replaced_while_its_request_waits_is_not_served_under_the_old_name(engine, adapters, tmp_path):
    """Offline there is no private copy: what the worker reads must be what was asked for."""
    base, _ = adapters()
    llm = engine(base, **ONE_AT_A_TIME, enable_prefix_caching=True)
    folder = write_adapter(tmp_path / "math", linears(base), r=16, choices=(16, 8, 4))
    manager = llm.llm_engine.model_executor.driver_worker.worker.model_runner.lora_manager
    request = lora_request(folder)
    write_adapter(folder, linears(base), r=16, choices=(16, 8, 4), seed=1)
    with pytest.raises(SQFTError, match="has changed since this request was made"):
        manager._load_adapter(request)


def test_two_versions_of_a_name_run_in_one_batch(engine, adapters, ask):
    base, root = adapters()
    llm = engine(base, **LORA)
    math, law = lora_request(root / "math@max"), lora_request(root / "law@max")
    versions = [LoRARequest("same", one.lora_int_id, one.lora_path) for one in (math, law)]
    alone = [ask(llm, [PROMPTS[0]], lora_request=one)[0] for one in (math, law)]
    assert difference(ask(llm, [PROMPTS[0]] * 2, lora_request=versions), alone) < 1e-4
