"""Models block by block: the same numbers as a model in memory, in shards like the source's, in memory that depth does
not fill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.shards import DTYPES, ShardFile, TensorSpec
from sqft_plugins.compress import blocks
from sqft_plugins.compress.gptq import GPTQ
from sqft_plugins.compress.job import Job
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.mask import conforms, sparsity_of
from sqft_plugins.structure import find_blocks, find_linears

SMALL = {"sequences": 4, "length": 32}


def tokens(sequences: int = 4, length: int = 32) -> torch.Tensor:
    return torch.randint(4, 640, (sequences, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder_of(tiny_model, tiny_tokenizer, tmp_path_factory):
    """folder_of(family, **changes) → a tiny model's folder, made once."""
    made = {}

    def make(family: str, **changes):
        key = family, json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("models") / family
            tiny_model(family, **changes).save_pretrained(made[key])
            tiny_tokenizer("byte-level").save_pretrained(made[key])
        return made[key]

    return make


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- a shard that is filled in any order ---


def test_a_shard_has_the_bytes_that_the_library_writes(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.0), "é": torch.ones(2, dtype=torch.bfloat16)}
    for dtype, name in DTYPES.items():
        tensors[f"x.{name}"] = torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        tensors[f"a.{name}"] = torch.randint(0, 2, (2,), generator=generator).to(dtype)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    for name in reversed(tensors):
        ShardFile(tmp_path / "ours", specs).write(name, tensors[name])  # opened anew each time, it goes on
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with pytest.raises(ValueError, match="laid out as"):
        ShardFile(tmp_path / "ours", specs).write("scalar", torch.tensor([3.0]))


# --- the skeleton and the blocks ---


def test_a_skeleton_computes_what_the_model_computes(folder_of, family) -> None:
    path = folder_of(family)
    skeleton = Skeleton(ModelFolder(path))
    for index, block in enumerate(find_blocks(skeleton.model)[1]):
        skeleton.load_block(index, block)
    with torch.no_grad():
        ours = skeleton.model.base_model(tokens(), use_cache=False)[0]
        theirs = load_model(path, dtype=torch.float32).base_model(tokens(), use_cache=False)[0]
    assert torch.equal(ours, theirs)
    for block in find_blocks(skeleton.model)[1]:
        skeleton.free(block)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_blocks_in_micro_batches_compute_what_the_model_computes(tiny_model, family, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 64)
    model = tiny_model(family).float()
    outputs: list[torch.Tensor] = []

    def on_block(index: int, run: blocks.BlockRun) -> None:
        assert len(run.states) == 3
        run.advance()
        outputs[:] = run.states

    blocks.run_blocks(model, tokens(6), on_block)
    seen: list[torch.Tensor] = []
    hook = find_blocks(model)[1][-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.base_model(tokens(6), use_cache=False)
    hook.remove()
    # the same arithmetic on other batch sizes: a GEMM may sum in another order
    torch.testing.assert_close(torch.cat(outputs), seen[0], rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(find_blocks(model)[1][0])


def test_micro_batches_are_equal_and_no_larger_than_asked() -> None:
    assert [len(part) for part in blocks.split(tokens(6), 64)] == [2, 2, 2]
    assert [len(part) for part in blocks.split(tokens(6), 10**6)] == [6]
    assert [len(part) for part in blocks.split(tokens(7), 100)] == [1] * 7
    assert [len(part) for part in blocks.split(tokens(2), 8)] == [1, 1]


def test_micro_batches_prune_and_quantize_as_one_batch_does(folder_of, tmp_path, monkeypatch, family) -> None:
    reports = {}
    for name, micro in (("one", 4096), ("many", 32)):
        monkeypatch.setattr(blocks, "MICRO_TOKENS", micro)
        prune_folder(folder_of(family), tmp_path / f"{name}-pruned", sparsity=0.5, **SMALL)
        reports[name] = quantize_folder(tmp_path / f"{name}-pruned", tmp_path / name, "gptq", **SMALL)
    one, many = ModelFolder(tmp_path / "one"), ModelFolder(tmp_path / "many")
    assert [row["name"] for row in reports["one"]["layers"]] == [row["name"] for row in reports["many"]["layers"]]
    # sums in another order: a score on the border of a row's half, or a value on that of two codes, may fall otherwise
    same = [(one.mask(module) == many.mask(module)).float().mean() for module in one.int4.modules]
    assert min(same) > 0.99
    codes = [(one.quantized(m).codes == many.quantized(m).codes).float().mean() for m in one.int4.modules]
    assert min(codes) > 0.9


def test_arguments_that_depend_on_the_text_are_refused_in_micro_batches(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 32)
    model = tiny_model("llama")
    first = find_blocks(model)[1][0]
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: embedded.append(output))
    first.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "extra": embedded[-1]}), with_kwargs=True
    )
    with pytest.raises(SQFTError, match=r"arguments that depend on the text.*lower --sequences"):
        prune_model(model, tokens(), Wanda(), 0.5)


# --- folders ---


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
def test_no_family_loses_a_zero(folder_of, tmp_path, family, method, pattern) -> None:
    prune_folder(folder_of(family), tmp_path / "pruned", method, pattern, **SMALL)
    report = quantize_folder(
        tmp_path / "pruned", tmp_path / "int4", "gptq", group_size=32, symmetric=pattern == "2:4", **SMALL
    )
    source, folder = ModelFolder(tmp_path / "pruned"), ModelFolder(tmp_path / "int4")
    transposed = family == "gpt2"
    assert len(folder.int4.modules) == report["modules"] > 0
    for module in folder.int4.modules:
        mask = folder.mask(module)
        weight = source.tensor(f"{module}.weight")
        assert torch.equal(mask, (weight.T if transposed else weight) != 0)
        assert not folder.weight(module)[~mask].any()
        if pattern == "2:4":
            assert conforms(mask, 2, 4) == 1.0
        else:
            assert (mask.sum(1) <= mask.shape[1] // 2).all()


def test_a_sharded_source_gives_the_same_tensors_in_the_same_shards(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    load_model(path).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for file in path.glob("token*"):
        (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    for name, source in (("one", path), ("many", tmp_path / "sharded")):
        prune_folder(source, tmp_path / f"{name}-50", **SMALL)
    one, many = ModelFolder(tmp_path / "one-50"), ModelFolder(tmp_path / "many-50")
    names = {name: file.name for name, file in ModelFolder(tmp_path / "sharded").files.items()}
    assert names == {name: file.name for name, file in many.files.items()}
    assert len(set(names.values())) > 2
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in names)
    assert one.stamp.mask_hash == many.stamp.mask_hash
    assert torch.equal(load_model(tmp_path / "many-50").lm_head.weight, load_model(path).lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_folder_of_the_bare_body_is_read_and_written_by_the_models_names(folder_of, tmp_path, family) -> None:
    """GPT-2 and Bloom are published without the prefix `transformer.`."""
    path = folder_of(family)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in path.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "model.safetensors")
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(stripped, bare / "model.safetensors", metadata={"format": "pt"})
    for name, source in (("whole", path), ("body", bare)):
        prune_folder(source, tmp_path / name, sparsity=0.5, **SMALL)
    whole, body = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "body"))
    assert all(torch.equal(whole[name], body[name]) for name in body)
    assert all(name.startswith("transformer.") for name in body)
    assert torch.equal(load_model(tmp_path / "body")(tokens()).logits, load_model(tmp_path / "whole")(tokens()).logits)


def test_excluded_layers_and_layers_of_their_own_sparsity(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    overrides = {"down_proj": "0.25", r"model\.layers\.1\..*up_proj": "1:4"}
    report = prune_folder(path, tmp_path / "out", exclude=["q_proj"], overrides=overrides, **SMALL)
    source, folder = ModelFolder(path), ModelFolder(tmp_path / "out")
    assert len(report["layers"]) == 12
    assert not any("q_proj" in module for module in folder.masks)
    for module in find_linears(load_model(path)):
        mask, weight = folder.mask(module), source.weight(module)
        if module.endswith("q_proj"):
            assert torch.equal(folder.weight(module), weight)
        elif module.endswith("down_proj"):
            assert ((~mask).sum(1) == 32).all()
        elif module == "model.layers.1.mlp.up_proj":
            assert (mask.unflatten(1, (-1, 4)).sum(-1) == 1).all()
        else:
            assert ((~mask).sum(1) == 32).all()
    quantize_folder(tmp_path / "out", tmp_path / "int4", exclude=["v_proj"])
    int4 = ModelFolder(tmp_path / "int4")
    assert int4.config["quantization_config"]["ignore"] == sorted(
        ["lm_head", *(f"model.layers.{block}.self_attn.v_proj" for block in range(2))]
    )
    assert int4.stamp.mask_hash == folder.stamp.mask_hash
    assert all(torch.equal(int4.masks[name], folder.masks[name]) for name in folder.masks)
    load_model(tmp_path / "int4")


def test_a_weight_of_another_shape_than_the_config_says_is_named(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(64, 64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is \(64, 64\) but its config"):
        prune_folder(tmp_path, tmp_path / "out", **SMALL)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight \(and lacks 0 more\)"):
        prune_folder(tmp_path, tmp_path / "out", **SMALL)


# --- killed, and started again ---


def killed(block: int, before_it_counts: bool, work) -> None:
    """Runs `work` in a process that dies by SIGKILL when that many blocks are finished: right after the last counts as
    done, or right before, when its results are written."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    replace, save = os.replace, Job.save

    def dying_replace(*arguments) -> None:
        if before_it_counts and str(arguments[1]).endswith("progress.json") and counted[0] == block:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    counted = [0]

    def dying_save(self, states) -> None:
        counted[0] += 1
        save(self, states)
        if counted[0] == block:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace, Job.save = dying_replace, dying_save
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("before_it_counts", [False, True])
@pytest.mark.parametrize("method", ["wanda", "magnitude", "gptq", "round-to-nearest"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_killed_at_any_block_the_result_is_byte_identical(
    folder_of, tmp_path, monkeypatch, capfd, family, method, before_it_counts
) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 64)
    layers = {"llama": "num_hidden_layers", "bloom": "n_layer"}[family]
    path = folder_of(family, **{layers: 4})
    if method in ("gptq", "round-to-nearest"):
        prune_folder(path, tmp_path / "pruned", sparsity=0.5, **SMALL)
        compress = lambda out: quantize_folder(tmp_path / "pruned", out, method, **SMALL)  # noqa: E731
    else:
        compress = lambda out: prune_folder(path, out, method, 0.5, **SMALL)  # noqa: E731
    undisturbed = compress(tmp_path / "undisturbed")
    block = int(torch.randint(1, 4, ()))
    killed(block, before_it_counts, lambda: compress(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    capfd.readouterr()
    report = compress(tmp_path / "out")
    if block > before_it_counts:
        assert f"going on at block {block + 1 - before_it_counts}:" in capfd.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert [{**row, "seconds": 0} for row in report["layers"]] == [
        {**row, "seconds": 0} for row in undisturbed["layers"]
    ]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("swapped", ["model.safetensors", "tokenizer.json"])
def test_another_model_under_the_same_name_size_and_time_does_not_go_on_from_there(
    swapped, folder_of, tmp_path, capfd
) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder_of("llama", num_hidden_layers=4), path)
    killed(2, False, lambda: prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL))
    before, content = (path / swapped).stat(), (path / swapped).read_bytes()
    last_bit = content[:-1] + bytes([content[-1] ^ 1])
    (path / swapped).write_bytes(last_bit if swapped.endswith("s") else content.replace(b"\n", b" ", 1))
    os.utime(path / swapped, ns=(before.st_atime_ns, before.st_mtime_ns))
    prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL)
    assert "is of another command or another model: starting anew" in capfd.readouterr().err


def test_another_command_does_not_go_on_from_there(folder_of, tmp_path, capfd) -> None:
    path = folder_of("llama", num_hidden_layers=4)
    killed(2, False, lambda: prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL))
    prune_folder(path, tmp_path / "out", sparsity=0.25, **SMALL)
    assert "is of another command or another model: starting anew" in capfd.readouterr().err
    folder = ModelFolder(tmp_path / "out")
    assert all(((~folder.mask(module)).sum(1) == folder.mask(module).shape[1] // 4).all() for module in folder.masks)


def test_what_a_killed_clean_up_leaves_is_no_job_to_go_on_with(folder_of, tmp_path, monkeypatch) -> None:
    """The model folder has gone to its place, but the list of finished blocks is still there."""
    compress = lambda: prune_folder(folder_of("llama"), tmp_path / "out", overwrite=True, **SMALL)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr("sqft_plugins.compress.job._remove", lambda work: None)
        compress()
    before = contents(tmp_path / "out")
    assert (tmp_path / ".out.sqft-job" / "progress.json").is_file()
    compress()
    assert contents(tmp_path / "out") == before
    (tmp_path / ".out.sqft-job").mkdir()
    for content in ('{"verb": "pru', ""):  # written half, as releases before could leave it
        (tmp_path / ".out.sqft-job" / "request.json").write_text(content)
        compress()
        assert contents(tmp_path / "out") == before
        (tmp_path / ".out.sqft-job").mkdir()


def test_the_stamp_tells_the_sparsity_of_all_masks_though_pruned_in_two_goes(folder_of, tmp_path) -> None:
    prune_folder(folder_of("llama"), tmp_path / "one", "magnitude", 0.5, exclude=["mlp.down_proj"])
    rest = [".*self_attn.*", "gate_proj", "up_proj"]
    prune_folder(tmp_path / "one", tmp_path / "two", "magnitude", 0.75, exclude=rest)
    folder = ModelFolder(tmp_path / "two")
    masks = [folder.mask(module) for module in folder.masks]
    assert len(masks) == 14
    assert folder.stamp.sparsity == sparsity_of(*masks) != 0.75


def test_two_processes_do_not_write_the_same_output(folder_of, tmp_path) -> None:
    from sqft_plugins.compress.job import open_job

    with open_job(tmp_path / "out", {"verb": "prune"}, False) as job:
        assert job.done == 0
        with pytest.raises(SQFTError, match="being written by another process"):
            prune_folder(folder_of("llama"), tmp_path / "out", **SMALL)
        (job.folder / "config.json").write_text("{}")
    assert (tmp_path / "out" / "config.json").is_file()


def test_bad_input_found_late_leaves_nothing(folder_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(GPTQ, "quantize", lambda *_: (_ for _ in ()).throw(SQFTError("too late")))
    with pytest.raises(SQFTError, match="too late"):
        quantize_folder(folder_of("llama"), tmp_path / "out", "gptq", **SMALL)
    assert not list(tmp_path.iterdir())


# --- memory ---

PEAK = """
import sys
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
prune_folder(sys.argv[1], sys.argv[2], sparsity=0.5, sequences=4, length=32)
exclude = [".*(mlp|[kvo]_proj).*"]
print(quantize_folder(sys.argv[2], sys.argv[3], "gptq", exclude=exclude, sequences=4, length=32)["peak_memory_mib"])
"""


def test_peak_memory_does_not_grow_with_depth(folder_of, tmp_path) -> None:
    """A block has 4.2 M weights, 17 MB in float32; eight more of them are 134 MB."""
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    peaks = {}
    for layers in (4, 12):
        path = folder_of("llama", **wide, num_hidden_layers=layers)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, path, tmp_path / f"{layers}-pruned", tmp_path / f"{layers}-int4"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[layers] = int(done.stdout)
    assert peaks[12] - peaks[4] < 40, peaks
