"""Value planes in a running engine: every rank answers as its merged folder does, in any company."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest
from helpers_adapters import write_adapter
from helpers_planes import TARGETS, write_qa_adapter
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")
pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.exceptions import VLLMValidationError

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import SQFTError
from vllm_ext.planes.cache import sqft_layers
from vllm_ext.planes.handler import PlaneHandler

pytestmark = pytest.mark.vllm
PROMPTS = [[2, *range(20, 30)], [2, *range(100, 121)], [2, *range(300, 305)]]
CLOSE = 1e-4
"""Of log-probabilities in float32. Tokens are computed in other groups here than in the merged folder's batches, so
sums run in another order; a code that is off by one moves them by 1e-2 and more."""
FUSED = {"phi3": ["qkv_proj", "gate_up_proj", "down_proj"]}


@pytest.fixture(autouse=True, scope="module")
def _store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQFT_PLANE_DIR", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def int4(tiny_int4):
    return tiny_int4("llama")


@pytest.fixture(scope="module")
def adapters(int4, tmp_path_factory):
    """math-qa over the INT4 folder, math-float over its float base, dense."""
    folder = tmp_path_factory.mktemp("adapters")
    write_qa_adapter(folder / "math-qa", int4)
    write_qa_adapter(folder / "math-float", int4, int4.with_name("pruned"), seed=1)
    shapes = {module: ModelFolder(int4).int4.shape(module)[::-1] for module in ModelFolder(int4).int4.modules}
    write_adapter(folder / "dense", modules={m: s for m, s in shapes.items() if m.endswith(tuple(TARGETS))})
    return folder


@pytest.fixture(scope="module")
def merged(int4, adapters, tmp_path_factory, engine, ask):
    """`merged(adapter, rank)` → the answers of the folder that `sqft merge` writes, for PROMPTS."""
    from sqft_plugins.tune.merge import merge_folder

    known = {}

    def answers(adapter: str, rank: int):
        if (adapter, rank) not in known:
            out = tmp_path_factory.mktemp("merged") / f"{adapter}-{rank}"
            base = int4.with_name("pruned") if adapter == "math-float" else int4
            merge_folder(base, adapters / adapter, out, rank)
            known[adapter, rank] = ask(engine(out), PROMPTS)
        return known[adapter, rank]

    return answers


def serve(engine, int4, **options):
    return engine(int4, enable_lora=True, max_loras=4, max_lora_rank=8, **options)


def request(adapters, name):
    from vllm_ext.adapters.offline import lora_request

    return lora_request(adapters / name)


def difference(one, other) -> float:
    """The largest of log-probabilities over all tokens; the tokens must be the same."""
    worst = 0.0
    for ours, theirs in zip(one, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert next(iter(a)) == next(iter(b))
            worst = max(worst, *(abs(a[token] - b[token]) for token in a.keys() & b.keys()))
    return worst


def switch():
    from vllm_ext.adapters.kinds import HANDLERS

    return HANDLERS["quantization-aware"].switch


def test_each_rank_answers_as_its_merged_folder(engine, ask, int4, adapters, merged) -> None:
    expected = {rank: merged("math-qa", rank) for rank in (8, 4)}
    assert difference_of_any(expected[8], expected[4])
    llm = serve(engine, int4)
    # a LoRA layer of vLLM's hands on the attributes of the layer in it: a plane must not be made for both
    kinds = llm.apply_model(lambda model: [type(layer).__name__ for layer in sqft_layers(model)])[0]
    assert len(kinds) == 8
    assert not any("LoRA" in kind for kind in kinds)
    for rank in (8, 4):
        found = ask(llm, PROMPTS, lora_request=request(adapters, f"math-qa@r{rank}"))
        assert difference(found, expected[rank]) < CLOSE


def test_a_batch_of_everything_gives_each_what_it_gets_alone(engine, ask, int4, adapters, merged) -> None:
    names = [None, "math-qa@r8", "dense@r6", "math-qa@r4", None, "dense@max"]
    expected = {rank: merged("math-qa", rank) for rank in (8, 4)}
    for caching in (False, True):
        llm = serve(engine, int4, enable_prefix_caching=caching)
        requests = [request(adapters, name) if name else None for name in names]
        alone = [ask(llm, PROMPTS[:1], lora_request=own)[0] for own in requests]
        for _ in range(2):  # with caching on, the second time out of the cache
            together = ask(llm, PROMPTS[:1] * len(names), lora_request=requests)
            assert difference(together, alone) < CLOSE
        assert difference([together[1]], expected[8][:1]) < CLOSE
        assert difference([together[3]], expected[4][:1]) < CLOSE
        assert difference_of_any([together[0]], [together[1]])


def test_planes_that_are_put_out_come_back(engine, ask, int4, adapters, merged, monkeypatch) -> None:
    llm = serve(engine, int4)
    ask(llm, PROMPTS[:1], lora_request=request(adapters, "math-qa@r8"))
    one = switch().cache.nbytes // len(list(switch().cache))
    monkeypatch.setattr(switch().cache, "budget", one)
    for rank in (8, 4, 8):
        found = ask(llm, PROMPTS, lora_request=request(adapters, f"math-qa@r{rank}"))
        assert difference(found, merged_known(merged, rank)) < CLOSE
        assert len(list(switch().cache)) == 1
    both = [request(adapters, f"math-qa@r{rank}") for rank in (8, 4)]
    found = ask(llm, [PROMPTS[0]] * 2, lora_request=both)  # one batch needs both
    assert difference([found[0]], merged_known(merged, 8)[:1]) < CLOSE
    assert difference([found[1]], merged_known(merged, 4)[:1]) < CLOSE
    assert len(list(switch().cache)) == 2
    ask(llm, PROMPTS[:1])
    assert len(list(switch().cache)) == 1


def test_a_plane_above_the_budget_is_refused_and_the_engine_lives_on(engine, ask, int4, adapters, monkeypatch) -> None:
    llm = serve(engine, int4)
    before = ask(llm, PROMPTS)
    monkeypatch.setattr(switch().cache, "budget", 1000)
    with pytest.raises(Exception, match="raise --plane-cache-bytes"):
        llm.llm_engine.add_lora(request(adapters, "math-qa@r6"))
    assert difference(ask(llm, PROMPTS), before) == 0.0


def test_an_adapter_over_the_float_base_is_served_from_its_exported_plane(engine, ask, int4, adapters, merged) -> None:
    from vllm_ext.planes.build import export_planes

    expected = merged("math-float", 6)
    llm = serve(engine, int4)
    with pytest.raises(Exception, match="write its plane once with `sqft export plane"):
        llm.llm_engine.add_lora(request(adapters, "math-float@r6"))
    with pytest.raises(VLLMValidationError, match="write its plane once"):  # before it is queued: the engine lives
        ask(llm, PROMPTS, lora_request=request(adapters, "math-float@r6"))
    export_planes(int4, adapters / "math-float", [6], int4.with_name("pruned"))
    found = ask(llm, PROMPTS, lora_request=request(adapters, "math-float@r6"))
    assert difference(found, expected) < CLOSE


def test_a_base_that_was_replaced_under_the_server_gets_no_planes(engine, ask, int4, adapters, tmp_path) -> None:
    """Its weights are those in memory; the folder has other codes at the same size and time."""
    base = tmp_path / "int4"
    shutil.copytree(int4, base)
    llm, request_ = serve(engine, base), request(adapters, "math-qa@r6")
    before, file = ask(llm, PROMPTS), base / "model.safetensors"
    tensors, stat = load_file(file), file.stat()
    name = next(name for name in tensors if name.endswith("o_proj.weight_packed"))
    save_file({**tensors, name: tensors[name].flip(0)}, file, {"format": "pt"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    with pytest.raises(SQFTError, match="has changed since this server loaded it"):
        llm.llm_engine.add_lora(request_)
    assert difference(ask(llm, PROMPTS), before) == 0.0


@pytest.mark.parametrize("settings", [{"mode": 3}, {"mode": 0, "cudagraph_mode": "FULL"}])
def test_a_compiled_model_has_no_planes(adapters, settings) -> None:
    from vllm.config import CompilationConfig

    from vllm_ext.adapters.folder import open_adapter

    compiled = SimpleNamespace(compilation_config=CompilationConfig(**settings))
    with pytest.raises(SQFTError, match="start the server with --enforce-eager"):
        PlaneHandler(None).check(open_adapter(adapters / "math-qa"), None, None, compiled)


@pytest.mark.parametrize(
    ("family", "grid"),
    [pytest.param("phi3", {}, marks=pytest.mark.slow), ("gemma3", {"group_size": 64, "symmetric": False})],
)
def test_fused_layers_get_the_codes_of_their_parts(engine, ask, tiny_int4, tmp_path, family, grid) -> None:
    from sqft_plugins.tune.merge import merge_folder

    int4 = tiny_int4(family, **grid)
    adapter = write_qa_adapter(tmp_path / "math-qa", int4, target_modules=FUSED.get(family, ["q_proj", "gate_proj"]))
    merge_folder(int4, adapter, tmp_path / "merged", 4)
    expected = ask(engine(tmp_path / "merged"), PROMPTS)
    found = ask(serve(engine, int4), PROMPTS, lora_request=request(tmp_path, "math-qa@min"))
    assert difference(found, expected) < CLOSE


def merged_known(merged, rank):
    """Answers that a test before has asked for: no engine is started in between."""
    return merged("math-qa", rank)


def difference_of_any(one, other) -> bool:
    """Whether two sets of answers differ clearly, in tokens or in log-probabilities."""
    try:
        return difference(one, other) > 100 * CLOSE
    except AssertionError:
        return True
