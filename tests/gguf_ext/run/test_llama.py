"""`gguf_ext.load`: adapters switched, mixed and scaled in one `Llama`, against PEFT and against each alone."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from llama_cpp import LlamaRAMCache
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import gguf_ext
from gguf_ext import GGUFError, LlamaSession, export_gguf, export_lora
from gguf_ext.errors import AdapterMismatchError, DamagedFileError, RuntimeFailedError, UnknownAdapterError
from sqft_plugins.errors import DependencyError, MismatchError

TOKENS = torch.randint(4, 600, (60,), generator=torch.Generator().manual_seed(3)).tolist()
OPTIONS = {"n_ctx": 128, "n_batch": 128, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "seed": 0}
"""The attention cache in F32, one thread: the same sums every time."""
TARGETS = ["q_proj", "k_proj", "down_proj"]
EXACT = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def place(tiny_model, tiny_tokenizer, tmp_path_factory):
    """Two bases (llama, gemma3) with their F32 files, and LoRA files math and code of the first, other of the second;
    the ranks of their modules differ."""
    root = tmp_path_factory.mktemp("load")
    for family in ("llama", "gemma3"):
        tiny_model(family).float().save_pretrained(root / family)
        tiny_tokenizer("byte-level").save_pretrained(root / family)
        export_gguf(root / family, root / f"{family}.gguf", float_type="f32")
    for seed, (name, family) in enumerate([("math", "llama"), ("code", "llama"), ("other", "gemma3")]):
        base = AutoModelForCausalLM.from_pretrained(root / family, dtype=torch.float32)
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, rank_pattern={"q_proj": 4, "0.*k_proj": 2})
        model = get_peft_model(base, settings)
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn_like(parameter) * 0.1
        model.save_pretrained(root / name)
        report = export_lora(root / name, root / f"{name}.gguf")
        assert len(report.ranks) == 3
    return root


@pytest.fixture
def llm(place):
    loaded = gguf_ext.load(
        place / "llama.gguf", {"math": place / "math.gguf", "code": place / "code.gguf"}, logits_all=True, **OPTIONS
    )
    yield loaded
    loaded.close()


def _logits(llm):
    """float32 [tokens, vocabulary] of a text from its beginning."""
    llm.reset()
    llm.eval(TOKENS)
    return torch.from_numpy(np.copy(llm.scores[: len(TOKENS)]))


def _merged(place, base, **scales):
    """The logits of transformers with `scale` times the delta of every named adapter merged in."""
    names = list(scales)
    model = AutoModelForCausalLM.from_pretrained(place / base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, place / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(place / name, adapter_name=name)
    for module in model.modules():
        for name, scale in scales.items():
            if name in getattr(module, "lora_A", {}):
                module.scaling[name] *= scale
    with torch.no_grad():
        return model.merge_and_unload(adapter_names=names)(torch.tensor([TOKENS])).logits[0]


def test_each_adapter_mix_and_scale_gives_the_merged_models_logits(llm, place):
    bare = _logits(llm)
    assert llm.active_adapters == {}
    wanted = {name: _merged(place, "llama", **{name: 1.0}) for name in ("math", "code")}
    assert float((wanted["math"] - bare).abs().max()) > 0.01
    for name in ("math", "code", "math"):
        llm.set_adapters(name)
        torch.testing.assert_close(_logits(llm), wanted[name], **EXACT)
    for scales in ({"math": 0.5}, {"math": 0.5, "code": 0.25}, {"code": 2.0, "math": -1.0}):
        llm.set_adapters(scales)
        assert llm.active_adapters == scales
        torch.testing.assert_close(_logits(llm), _merged(place, "llama", **scales), **EXACT)
    llm.set_adapters({"math": 0.0})
    assert llm.active_adapters == {}
    torch.testing.assert_close(_logits(llm), bare, rtol=0, atol=0)


def test_gemma3_with_ranks_that_differ(place, tmp_path):
    """Against the merged model in the same runtime; transformers is further off, since llama.cpp's gelu goes through a
    table in fp16."""
    base = AutoModelForCausalLM.from_pretrained(place / "gemma3", dtype=torch.float32)
    PeftModel.from_pretrained(base, place / "other").merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(place / "gemma3").save_pretrained(tmp_path / "merged")
    export_gguf(tmp_path / "merged", tmp_path / "merged.gguf", float_type="f32")
    llm = gguf_ext.load(place / "gemma3.gguf", {"other": place / "other.gguf"}, logits_all=True, **OPTIONS)
    merged = gguf_ext.load(tmp_path / "merged.gguf", logits_all=True, **OPTIONS)
    assert float((_logits(llm) - _logits(merged)).abs().max()) > 0.01
    llm.set_adapters("other")
    torch.testing.assert_close(_logits(llm), _logits(merged), **EXACT)
    torch.testing.assert_close(_logits(llm), _merged(place, "gemma3", other=1.0), rtol=0, atol=2e-3)
    llm.close()
    merged.close()


def test_two_adapters_in_one_process_equal_each_alone(llm, place):
    for name in ("math", "code"):
        alone = gguf_ext.load(place / "llama.gguf", {name: place / f"{name}.gguf"}, logits_all=True, **OPTIONS)
        alone.set_adapters(name)
        llm.set_adapters(name)
        torch.testing.assert_close(_logits(llm), _logits(alone), rtol=0, atol=0)
        alone.close()
    with LlamaSession(place / "llama.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        session.set_adapters({place / "code.gguf": 1.0})
        ours = torch.cat([chunk.clone() for chunk in session.logits(TOKENS)])
    torch.testing.assert_close(_logits(llm), ours, rtol=0, atol=1e-5)


def _complete(llm):
    return llm.create_completion(TOKENS, max_tokens=12, temperature=0)["choices"][0]["text"]


def test_a_switch_forgets_the_text_and_its_cached_states(llm, place):
    wanted = {}
    for name in ("math", "code"):
        fresh = gguf_ext.load(place / "llama.gguf", {name: place / f"{name}.gguf"}, **OPTIONS)
        fresh.set_adapters(name)
        wanted[name] = _complete(fresh)
        fresh.close()
    assert wanted["math"] != wanted["code"]
    for cache in (None, LlamaRAMCache()):
        llm.set_cache(cache)
        for name in ("math", "code", "math", "code"):  # the same prompt: the prefix would match
            llm.set_adapters(name)
            assert llm.n_tokens == 0
            assert _complete(llm) == wanted[name], (cache, name)
    assert len(cache.cache_state) == 2
    assert len({key[0] for key in cache.cache_state}) == 2
    assert max(key[0] for key in cache.cache_state) < 0
    before = llm.n_tokens
    llm.set_adapters("code")  # nothing changes
    assert llm.n_tokens == before > 0


def test_a_saved_state_belongs_to_its_adapters(llm):
    llm.set_adapters("math")
    llm.eval(TOKENS)
    state = llm.save_state()
    llm.set_adapters()
    with pytest.raises(GGUFError, match="saved under other adapters"):
        llm.load_state(state)
    llm.set_adapters("math")
    llm.load_state(state)
    assert llm.n_tokens == len(TOKENS)


def test_another_file_under_the_same_name_size_and_time_is_another_adapter(place, tmp_path):
    file, states = tmp_path / "own.gguf", []
    for name in ("math", "code"):
        file.write_bytes((place / f"{name}.gguf").read_bytes())
        os.utime(file, ns=(1, 1))
        own = gguf_ext.load(place / "llama.gguf", {"own": file}, **OPTIONS)
        own.set_adapters("own")
        own.eval(TOKENS)
        states.append(own.save_state())
        with pytest.raises(GGUFError, match="saved under other adapters") if states[1:] else nullcontext():
            own.load_state(states[0])
        own.close()


def test_everything_else_of_llama_works(llm, capfd):
    llm.set_adapters({"math": 0.5})
    streamed = [part["choices"][0]["text"] for part in llm("One two", max_tokens=5, temperature=0, stream=True)]
    assert "".join(streamed) == llm("One two", max_tokens=5, temperature=0)["choices"][0]["text"]
    again = pickle.loads(pickle.dumps(llm))
    assert (again.adapters, again.active_adapters) == (llm.adapters, {"math": 0.5})
    torch.testing.assert_close(_logits(again), _logits(llm), rtol=0, atol=0)
    again.close()
    assert capfd.readouterr().err == ""


def test_verbose_shows_llama_cpps_log(place, capfd):
    gguf_ext.load(place / "llama.gguf", verbose=True, **OPTIONS).close()
    assert "llama_model_loader" in capfd.readouterr().err
    gguf_ext.load(place / "llama.gguf", **OPTIONS).close()
    assert capfd.readouterr().err == ""


def test_the_context_is_no_longer_than_the_models(place):
    for wanted, found in ((None, 256), (0, 256), (512, 512), (100, 100)):  # 256 is what the tiny model was made for
        llm = gguf_ext.load(place / "llama.gguf", n_ctx=wanted, n_threads=1)
        assert llm.n_ctx() == found
        llm.close()


def test_tokens_beyond_the_context_are_an_error_in_one_line(llm, monkeypatch):
    words = r"^129 tokens do not fit context=128 of .*llama.gguf: shorten the text .*larger context$"
    for prompt in ([5] * 128, TOKENS + TOKENS + TOKENS[:8]):
        with pytest.raises(GGUFError, match=words):
            llm.create_completion(prompt)
    with pytest.raises(GGUFError, match="tokens do not fit context=128"):
        llm("One two " * 100, echo=True)
    llm.reset()
    with pytest.raises(GGUFError, match=words):
        llm.eval([5] * 129)
    llm.eval([5] * 128)
    with pytest.raises(GGUFError, match=words):
        llm.eval([5])
    begun = llm.tokenize("é".encode(), add_bos=False)[0]  # llama-cpp-python waits for the rest of a character
    monkeypatch.setattr(llm, "sample", lambda *args, **options: begun)
    with pytest.raises(GGUFError, match=words):
        llm("One two", max_tokens=None)


def test_what_does_not_fit_is_named(llm, place, tmp_path):
    base = place / "llama.gguf"
    with pytest.raises(UnknownAdapterError, match=r"adapter 'mth' is unknown: did you mean 'math'\? known: code, math"):
        llm.set_adapters("mth")
    with pytest.raises(GGUFError, match="scale=nan of adapter 'math' is no finite number"):
        llm.set_adapters({"code": 1.0, "math": float("nan")})
    assert llm.active_adapters == {}
    with pytest.raises(GGUFError, match="adapter 'math' is there already"):
        llm.add_adapter("math", place / "code.gguf")
    with pytest.raises(GGUFError, match="is not a file: give a LoRA file"):
        llm.add_adapter("none", tmp_path / "none.gguf")
    with pytest.raises(AdapterMismatchError, match=r"other\.gguf is for gemma3, .*llama\.gguf is llama: export it for"):
        gguf_ext.load(base, {"other": place / "other.gguf"}, **OPTIONS)
    with pytest.raises(MismatchError, match="is no LoRA file"):
        llm.add_adapter("model", base)
    (tmp_path / "cut.gguf").write_bytes((place / "math.gguf").read_bytes()[:2000])
    with pytest.raises(DamagedFileError):
        llm.add_adapter("cut", tmp_path / "cut.gguf")
    with pytest.raises(GGUFError, match="cannot be switched: give it as adapters"):
        gguf_ext.load(base, lora_path=str(place / "math.gguf"))
    with pytest.raises(GGUFError, match="is not a file"):
        gguf_ext.load(tmp_path / "none.gguf")
    with pytest.raises(RuntimeFailedError, match="cannot load"):
        gguf_ext.load(place / "math.gguf", **OPTIONS)  # a LoRA file is no model
    llm.set_adapters("math")  # and it still works
    assert llm.active_adapters == {"math": 1.0}


def test_an_adapter_of_a_larger_sister_is_refused(place, tiny_model, tiny_tokenizer, tmp_path):
    tiny_model("llama", intermediate_size=96).save_pretrained(tmp_path / "sister")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "sister")
    export_gguf(tmp_path / "sister", tmp_path / "sister.gguf", float_type="f32")
    with pytest.raises(AdapterMismatchError, match="export it for this base"):
        gguf_ext.load(tmp_path / "sister.gguf", {"math": place / "math.gguf"}, **OPTIONS)


def test_without_llama_cpp_python_it_says_what_to_install(place, monkeypatch):
    monkeypatch.setattr("gguf_ext.run.backend._backend", {})
    monkeypatch.delitem(sys.modules, "gguf_ext.run.llama")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(DependencyError, match=r"llama-cpp-python is not installed: pip install 'sqft-plugins\[gguf\]'"):
        gguf_ext.load(place / "llama.gguf")


def test_close_frees_the_adapters_and_may_be_called_twice(place):
    llm = gguf_ext.load(place / "llama.gguf", {"math": place / "math.gguf"}, **OPTIONS)
    llm.set_adapters("math")
    held = copy.copy(llm._adapters._handles)
    assert len(held) == 1
    llm.close()
    assert llm._adapters._handles == {}
    llm.close()
