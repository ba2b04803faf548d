"""What is exported runs in llama.cpp as the model does, and a file that llama.cpp would die of is refused before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import gguf_ext
from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.arch import Entry
from gguf_ext.errors import UnloadableFileError
from gguf_ext.export import write_tensors
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable
from gguf_ext.write.layout import find_layout
from gguf_ext.write.plan import plan
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main
from sqft_plugins.errors import SQFTError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
FAMILIES = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 16},
    "phi3": DECODER,
    "gemma3_text": {**DECODER, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
}
TOKENS = torch.randint(4, 400, (48,), generator=torch.Generator().manual_seed(2)).tolist()
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = {"rope_theta": 10000.0}


@pytest.fixture(scope="module")
def save(make, tmp_path_factory):
    """A random model of a family with the options; `raw`: written over config.json afterwards."""
    tokenizers = {True: make["fallback"](), False: make["byte_level"]()}

    def write(family, raw=None, **options):
        folder = tmp_path_factory.mktemp("loadable") / "model"
        tokenizer = tokenizers[family == "gemma3_text"]
        ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
        config = AutoConfig.for_model(family, **{**FAMILIES[family], **ids, **options})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.25 + float("norm" in name and "gemma" not in family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if raw:
            settings = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**settings, **raw}))
        return folder

    return write


RUN = [
    *[("llama", {"head_dim": head}) for head in (2, 6, 10, 32)],
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"hidden_act": "swish", "rms_norm_eps": 0.0, "pretraining_tp": 2}),
    ("llama", {"num_hidden_layers": 1, "intermediate_size": 1, "max_position_embeddings": 48}),
    *[
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": low}})
        for low in (1.0, 4.0, 8.0)  # 4.0 is the high one, 8.0 above it
    ],
    ("mistral", {"head_dim": 32, "sliding_window": None}),
    ("mistral", {"num_attention_heads": 5, "num_key_value_heads": 5, "sliding_window": 1000}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}),
    ("qwen2", {"head_dim": 16}),
    ("qwen3", {"head_dim": 32}),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.4}}),
    ("gemma3_text", {"layer_types": [FULL] * 2}),
    ("gemma3_text", {"layer_types": [SLIDING] * 2}),
    ("gemma3_text", {"layer_types": [FULL, SLIDING], "final_logit_softcapping": 5.0, "tie_word_embeddings": False}),
    ("gemma3_text", {"num_hidden_layers": 7, "num_key_value_heads": 1}),
    ("gpt2", {"n_inner": 100, "activation_function": "gelu_fast", "tie_word_embeddings": False}),
    ("gpt2", {"n_head": 32, "reorder_and_upcast_attn": True, "layer_norm_epsilon": 0.0}),
    *[("bloom", {"n_head": heads, "hidden_size": 96}) for heads in (1, 3, 6, 12)],
    ("bloom", {"slow_but_exact": True, "layer_norm_epsilon": 1e-2, "tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("family", "options"), RUN, ids=lambda value: str(value)[:60])
def test_what_is_exported_runs_as_the_model_does(save, tmp_path, family, options):
    rope = options.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        rope.update({"high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    folder = save(family, **options)
    export_gguf(folder, tmp_path / "model.gguf", float_type="f32")
    assert verify_gguf(folder, tmp_path / "model.gguf").exact

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1)
    with LlamaSession(tmp_path / "model.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        found = torch.cat([part.clone() for part in session.logits(TOKENS)]).double().log_softmax(-1)
    assert (wanted.exp() * (wanted - found)).sum(-1).mean() < 1e-5


REFUSED = [
    *[("qwen2", {"head_dim": head}, "heads of .* are not the embedding's 64") for head in (8, 32)],
    *[("phi3", {"head_dim": head}, "heads of .* are not the embedding's 64") for head in (8, 32)],
    ("mistral", {"num_hidden_layers": 0}, "block_count=0"),
    ("gpt2", {"n_layer": 0}, "block_count=0"),
    ("llama", {"raw": {"num_hidden_layers": 0}}, "no place"),
    ("llama", {"num_key_value_heads": 8}, "head_count_kv=8 does not divide"),
    ("qwen3", {"num_key_value_heads": 3}, "head_count_kv=3 does not divide"),
    ("llama", {"rms_norm_eps": -1e-3}, "rms_epsilon=-0.001"),
    ("llama", {"max_position_embeddings": 10**10}, "does not fit a GGUF file"),
    ("llama", {"max_position_embeddings": 0}, "context_length=0"),
    ("qwen3", {"max_position_embeddings": 2**32 - 1}, "context_length=4294967295"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "freq_base=0.0"),
    ("mistral", {"sliding_window": 0}, "sliding_window=0 is no window"),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.1}}, "dimension_count=1"),
    ("gemma3_text", {"raw": {"sliding_window": None, "layer_types": [SLIDING] * 2}}, "sliding_window=None"),
    ("gemma3_text", {"raw": {"sliding_window": 0, "layer_types": [SLIDING] * 2}}, "sliding_window=0"),
    ("gemma3_text", {"raw": {"final_logit_softcapping": 0.0}}, "final_logit_softcapping=0.0"),
    ("gemma3_text", {"raw": {"attn_logit_softcapping": 0.0}}, "attn_logit_softcapping"),
    ("gpt2", {"n_head": 64}, "key_length=1"),
    ("bloom", {"n_head": 64}, "key_length=1"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
]


@pytest.mark.parametrize(("family", "options", "why"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_llama_cpp_cannot_run_is_refused_in_a_line(save, tmp_path, family, options, why):
    folder = save(family, **options)
    with pytest.raises(SQFTError, match=why) as caught:
        export_gguf(folder, tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


def test_layers_without_a_window_need_none(save, tmp_path):
    """transformers has no mask for it, so there is nothing to compare; llama.cpp loads and runs it."""
    folder = save("gemma3_text", raw={"sliding_window": None, "layer_types": [FULL] * 2})
    export_gguf(folder, tmp_path / "model.gguf")
    with LlamaSession(tmp_path / "model.gguf", threads=1) as session:
        assert all(part.isfinite().all() for part in session.logits(TOKENS))


def test_the_command_says_it_in_one_line_and_ends_with_2(save, tmp_path, capsys):
    folder = save("qwen2", head_dim=32)
    with pytest.raises(SystemExit) as ended:
        main(["export", "gguf", str(folder), "--out", str(tmp_path / "model.gguf")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("sqft: llama.cpp cannot load model")


@pytest.fixture(scope="module")
def base(save):
    """Family → its file's entries and a function that writes the file with other entries."""
    found = {}

    def of(family):
        if family not in found:
            folder = save(family)
            file = folder.with_name("model.gguf")
            export_gguf(folder, file)
            read, source = GGUFFile(file), ModelFolder(folder)
            layout = find_layout(source)
            planned = plan(source, layout.tensors)
            entries = {key: Entry(key, value, read.kinds[key]) for key, value in read.metadata.items()}
            entries.pop("general.architecture")

            def write(path, changes, layout=layout, planned=planned, source=source, entries=entries):
                changed = {**entries, **{key: Entry(key, *change) for key, change in changes.items() if change}}
                kept = [entry for key, entry in changed.items() if changes.get(key, True)]
                write_tensors(path, layout.architecture, kept, planned, source)

            found[family] = ({key: entry.value for key, entry in entries.items()}, write)
        return found[family]

    return of


TOKENS_KEY, MODEL, NAME = "tokenizer.ggml.tokens", "tokenizer.ggml.model", "general.name"
DEADLY = [
    *[("llama", {"llama.block_count": (count, "uint32")}) for count in (0, 513, 99999, 2**32 - 1)],
    *[("llama", {"llama.rope.scaling.type": (kind, "string")}) for kind in ("dynamic", "llama3", "su", "")],
    ("gpt2", {"gpt2.rope.scaling.type": ("dynamic", "string")}),
    ("llama", {"llama.nextn_predict_layers": (9, "uint32")}),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": (-1.0, "float32")}),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": (float("nan"), "float32")}),
    ("bloom", {"bloom.attention.layer_norm_epsilon": (-1.0, "float32")}),
    ("llama", {"llama.expert_count": (2000, "uint32")}),
    ("llama", {"llama.expert_used_count": (8, "uint32")}),
    ("llama", {"llama.expert_group_count": (8, "uint32")}),
    *[("qwen2", {"qwen2.rope.dimension_count": (count, "uint32")}) for count in (1, 8, 64)],
    *[("phi3", {"phi3.rope.dimension_count": (count, "uint32")}) for count in (3, 65)],
    ("gemma3_text", {"gemma3.rope.dimension_count_swa": (3, "uint32")}),
    ("gemma3_text", {"gemma3.attention.sliding_window_pattern": (1, "uint32")}),
    ("gemma3_text", {"gemma3.attention.sliding_window_pattern": ([False] * 2, "bools")}),
    ("llama", {MODEL: ("none", "string")}),
    ("gemma3_text", {MODEL: ("bert", "string")}),
    ("llama", {TOKENS_KEY: "the last is the first"}),
    ("llama", {TOKENS_KEY: "two are empty names"}),
    ("gemma3_text", {TOKENS_KEY: "no byte"}),
]
REFUSED_BY_ITSELF = [
    ("llama", {"llama.attention.head_count_kv": (3, "uint32")}),
    ("llama", {NAME: ("My Phi-3 tune", "string")}),  # it looks for tokens by name
    ("llama", {"llama.block_count": None}),
    ("llama", {"llama.context_length": None}),
    ("llama", {"llama.attention.head_count": (0, "uint32")}),
    ("qwen2", {"qwen2.attention.head_count": (8, "uint32")}),
    ("llama", {"llama.attention.head_count": ([4] * 3, "uint32s")}),
    ("llama", {"llama.rope.dimension_count": (8, "uint32")}),
]


def _changes(values, changes):
    """The named changes of the tokens, made."""
    tokens = values[TOKENS_KEY]
    made = {
        "the last is the first": [*tokens[:-1], tokens[0]],
        "two are empty names": ["[EMPTY_3]", *tokens[1:3], "", *tokens[4:]],
        "no byte": [token.replace("<0xFF>", "<0xZZ>") for token in tokens],
    }
    return {key: (made[change], "strings") if isinstance(change, str) else change for key, change in changes.items()}


@pytest.mark.parametrize(("family", "changes"), [*DEADLY, *REFUSED_BY_ITSELF], ids=str)
def test_a_deadly_file_is_refused_through_every_door(base, tmp_path, family, changes):
    values, write = base(family)
    write(tmp_path / "model.gguf", _changes(values, changes))
    for door in (LlamaSession, gguf_ext.load):
        with pytest.raises(UnloadableFileError, match=f"cannot load {tmp_path}/model.gguf: ") as caught:
            door(tmp_path / "model.gguf")
        assert "\n" not in str(caught.value)


PROBE = """
import ctypes, os, sys
import llama_cpp as c
c.llama_backend_init()
def run(path):
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    if not model: return
    vocab, ids = c.llama_model_get_vocab(model), (c.llama_token * 999)()
    c.llama_tokenize(vocab, b"a \\xff", 3, ids, 999, True, True)
    settings = c.llama_context_default_params(); settings.n_ctx, settings.n_threads = 64, 1
    context = c.llama_init_from_model(model, settings)
    if context: c.llama_decode(context, c.llama_batch_get_one((c.llama_token * 3)(4, 5, 6), 3))
for path in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)
        run(path); os._exit(0)
    print(int(os.WIFSIGNALED(os.waitpid(pid, 0)[1])))
"""


def test_llama_cpp_does_die_of_these(base, tmp_path):
    """Else a rule refuses what works. The unchanged files live."""
    files = []
    for index, (family, changes) in enumerate([*DEADLY, *((family, {}) for family in FAMILIES)]):
        values, write = base(family)
        files.append(tmp_path / f"{index}.gguf")
        write(files[-1], _changes(values, changes))
    died = _dies(*files)
    assert [case for case, dead in zip(DEADLY, died, strict=False) if not dead] == []
    assert not any(died[len(DEADLY) :])


TYPES = {0: "F32", 1: "F16", 26: "I32", 28: "F64", 30: "BF16"}


@pytest.fixture(scope="module")
def retyped(base, tmp_path_factory):
    """Family, tensor, type → its file with that tensor so; a type of None leaves it out."""
    gguf = pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("types")

    def write(family, name, kind):
        values, make_file = base(family)
        plain, file = root / f"{family}.gguf", root / f"{family}-{name}-{kind}.gguf"
        make_file(plain, {})
        read = GGUFFile(plain)
        writer = gguf.GGUFWriter(file, read.metadata["general.architecture"])
        plurals = {"floats": "FLOAT32", "ints": "INT32"}
        for key in values:
            entry = read.kinds[key]
            item = gguf.GGUFValueType[plurals.get(entry, entry.removesuffix("s").upper())]
            array = (gguf.GGUFValueType.ARRAY, item) if entry.endswith("s") else (item, None)
            writer.add_key_value(key, values[key], *array)
        for info in read.tensors.values():
            rows = torch.from_numpy(read.dequantize(info.name).copy()).reshape(info.shape)
            if info.name == name and kind is None:
                continue
            kinds = {1: torch.float16, 26: torch.int32, 28: torch.float64}
            if info.name == name and kind == 30:
                half = rows.bfloat16().view(torch.uint8).numpy()
                writer.add_tensor(info.name, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(info.name, rows.to(kinds.get(kind if info.name == name else 0, rows.dtype)).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write


WRONG_TYPES = [
    ("llama", "output_norm.weight", 1),
    ("qwen2", "blk.1.attn_q.bias", 30),
    ("gpt2", "blk.0.attn_norm.bias", 1),
    ("gemma3_text", "blk.0.attn_q_norm.weight", 28),
    ("llama", "blk.1.ffn_up.weight", 28),
    ("llama", "token_embd.weight", 26),
    ("phi3", "blk.1.attn_qkv.weight", None),
]


def test_tensors_that_no_operator_takes_are_refused(retyped):
    for family, name, kind in WRONG_TYPES:
        file = retyped(family, name, kind)
        with pytest.raises(UnloadableFileError, match=f"{name} is ({TYPES.get(kind)}|of {TYPES.get(kind)}|missing)"):
            LlamaSession(file)
    fine = [retyped("llama", "blk.1.ffn_up.weight", kind) for kind in (0, 1, 30)]
    for file in fine:
        LlamaSession(file, threads=1).close()
    assert _dies(*(retyped(*case) for case in WRONG_TYPES), *fine) == [True] * len(WRONG_TYPES) + [False] * len(fine)


def _dies(*files):
    """Of each file, whether llama.cpp ends the process that loads and runs it."""
    settings = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, *map(str, files)], env=settings, capture_output=True, text=True)
    found = [line == "1" for line in done.stdout.split()]
    assert len(found) == len(files), done.stderr[-500:]
    return found


def test_harmless_changes_are_not_refused(base):
    """Each was seen to load and run in llama.cpp."""
    values, _ = base("llama")
    for changes in (
        {"llama.rope.scaling.type": "none"},
        {"llama.rope.scaling.type": "longrope"},
        {"llama.rope.scaling.factor": 0.0},
        {"llama.attention.head_count": [4, 4], "llama.attention.head_count_kv": [2, 2]},
        {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.nextn_predict_layers": 1},
        {"tokenizer.ggml.bos_token_id": 10**6, "tokenizer.ggml.eos_token_id": 10**6},
        {TOKENS_KEY: ["", *values[TOKENS_KEY][1:]]},
        {NAME: "phi-2"},
    ):
        assert unloadable({"general.architecture": "llama", **values, **changes}) == ""
    for other in ("mamba", "rwkv7", "bert"):  # not ours: what we do not know is llama.cpp's to say
        sizes = {f"{other}.{key}": 4 for key in ("block_count", "embedding_length", "context_length")}
        assert (
            unloadable({"general.architecture": other, MODEL: "bert", f"{other}.attention.head_count": 0, **sizes})
            == ""
        )


@pytest.mark.parametrize("changes", [{"head_count": 0}, {"head_count": 4, "head_count_kv": 0}, {"head_count": [4, 0]}])
def test_heads_of_a_model_made_by_a_template_are_counted_too(changes):
    """llama.cpp's olmo2 divides by them."""
    sizes = {"olmo2.block_count": 2, "olmo2.embedding_length": 64, "olmo2.context_length": 4}
    heads = {f"olmo2.attention.{key}": value for key, value in changes.items()}
    assert "olmo2.attention.head_count" in unloadable({"general.architecture": "olmo2", **sizes, **heads})


def test_a_context_beyond_the_positions_is_refused(base, tmp_path):
    """llama.cpp would read past the table of positions, and die; rotary models may be stretched."""
    for family in ("gpt2", "llama"):
        base(family)[1](tmp_path / f"{family}.gguf", {})
    with pytest.raises(GGUFError, match=r"context=129 .* it has 128 positions"):
        gguf_ext.load(tmp_path / "gpt2.gguf", n_ctx=129)
    for context in (-1, 2**31, 2**32):  # the last is 0 to ctypes
        with pytest.raises(GGUFError, match=f"context={context} .* is none"):
            gguf_ext.load(tmp_path / "llama.gguf", n_ctx=context)
    for context in (None, 0, 128):
        gguf_ext.load(tmp_path / "gpt2.gguf", n_ctx=context).close()
    with LlamaSession(tmp_path / "gpt2.gguf", threads=1, context=4096) as session:
        assert session.context == 128
    gguf_ext.load(tmp_path / "llama.gguf", n_ctx=600).close()


def test_a_lora_file_is_no_model(tmp_path, base):
    base("llama")[1](tmp_path / "lora.gguf", {"general.type": ("adapter", "string")})
    for door in (LlamaSession, gguf_ext.load):
        with pytest.raises(UnloadableFileError, match="it is a LoRA file"):
            door(tmp_path / "lora.gguf")


@pytest.fixture(scope="module")
def lora(save, tmp_path_factory):
    """A base's file and a function that writes its LoRA file with other entries and tensors."""
    from peft import LoraConfig, get_peft_model

    from gguf_ext import export_lora

    gguf, root = pytest.importorskip("gguf"), tmp_path_factory.mktemp("lora")
    folder = save("llama")
    export_gguf(folder, root / "base.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(root / "adapter")
    export_lora(root / "adapter", root / "plain.gguf", base=folder)
    read = GGUFFile(root / "plain.gguf")

    def write(file, entries=(), tensors=()):
        changed = {key: Entry(key, value, read.kinds[key]) for key, value in read.metadata.items()}
        changed |= {entry.key: entry for entry in entries}
        kinds = {"uint32": gguf.GGUFValueType.UINT32, "string": gguf.GGUFValueType.STRING}
        writer = gguf.GGUFWriter(file, changed.pop("general.architecture").value)
        for key, value, kind in changed.values():
            if not kind.endswith("s"):
                writer.add_key_value(key, value, kinds.get(kind) or gguf.GGUFValueType[kind.upper()])
        for info in read.tensors.values():
            rows = read.dequantize(info.name).reshape(info.shape).copy()
            writer.add_tensor(info.name, dict(tensors).get(info.name, lambda same: same)(rows))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return root / "base.gguf", write


A = "blk.0.attn_q.weight.lora_a"


@pytest.mark.parametrize(
    ("entries", "tensors", "why"),
    [
        ([], {A: lambda rows: rows.astype("float64")}, f"{A} is of F64"),
        ([], {A: lambda rows: rows.astype("int32")}, f"{A} is of I32"),
        ([], {A: lambda rows: rows * float("nan")}, f"{A} holds values that are no numbers"),
        ([], {A: lambda rows: rows + float("inf")}, f"{A} holds values that are no numbers"),
        ([], {A: lambda rows: torch.from_numpy(rows).expand(2, *rows.shape).numpy().copy()}, f"{A} has 3 dimensions"),
        ([Entry("adapter.lora.alpha", 3, "uint32")], {}, "adapter.lora.alpha is of kind uint32"),
        ([Entry("adapter.lora.alpha", float("nan"), "float32")], {}, "adapter.lora.alpha=nan"),
        ([Entry("adapter.lora.task_name", 3, "uint32")], {}, "adapter.lora.task_name is of kind uint32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_deadly_lora_file_is_refused_before_llama_cpp_has_it(lora, tmp_path, entries, tensors, why):
    base, write = lora
    file = write(tmp_path / "lora.gguf", entries, tensors)
    with LlamaSession(base, threads=1) as session:
        with pytest.raises(UnloadableFileError, match=f"cannot add {file}: {why}"):
            session.set_adapters({file: 1.0})
        session.set_adapters({write(tmp_path / "fine.gguf"): 1.0})
    with pytest.raises(UnloadableFileError, match=why):
        gguf_ext.load(base, {"math": file})


def test_kinds_that_llama_cpp_does_not_ask_for_are_read_as_damage(base, tmp_path):
    """It takes the alignment for uint32 and a name for given, and dies where they are not."""
    _, write = base("llama")
    for key, kind in (("general.alignment", "uint64"), ("", "uint32")):
        write(tmp_path / "model.gguf", {key: (32, kind)})
        with pytest.raises(GGUFError, match="is damaged"):
            GGUFFile(tmp_path / "model.gguf")
    write(tmp_path / "model.gguf", {"general.alignment": (32, "uint32")})
    assert GGUFFile(tmp_path / "model.gguf").tensors
