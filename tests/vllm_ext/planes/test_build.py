"""Value planes on disk: the codes that `sqft merge` writes, and nothing else. No vLLM needed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_adapters import change, write_adapter
from helpers_planes import CHOICES, merged_codes, write_qa_adapter
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, MismatchError, OutputExistsError, SQFTError
from vllm_ext.planes.build import export_planes
from vllm_ext.planes.format import KEY, PlaneFile, adapter_identity, base_identity, plane_key
from vllm_ext.planes.store import find_plane, store_folder
from vllm_ext.variables import PLANE_DIR

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def int4(tiny_int4):
    return tiny_int4("llama")


@pytest.fixture(scope="module")
def adapter(int4, tmp_path_factory):
    return write_qa_adapter(tmp_path_factory.mktemp("adapters") / "math-qa", int4)


@pytest.fixture(scope="module")
def float_adapter(int4, tmp_path_factory):
    return write_qa_adapter(tmp_path_factory.mktemp("adapters") / "math-float", int4, int4.with_name("pruned"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(PLANE_DIR, str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.mark.parametrize("grid", [{}, {"group_size": 64, "symmetric": False}, {"group_size": -1}])
@pytest.mark.parametrize("over", ["int4", "float"])
def test_a_plane_holds_the_codes_of_the_merged_folder(tiny_int4, tmp_path, grid, over) -> None:
    int4 = tiny_int4("llama", **grid)
    base = int4.with_name("pruned") if over == "float" else None
    adapter = write_qa_adapter(tmp_path / "adapter", int4, base)
    reports = export_planes(int4, adapter, CHOICES, base)
    folder, seen = ModelFolder(int4), []
    for rank, report in zip(CHOICES, reports, strict=True):
        plane = PlaneFile(adapter / "planes" / f"r{rank}.safetensors")
        expected = merged_codes(base or int4, adapter, tmp_path / f"merged-{rank}", rank)
        assert report["out"] == str(plane.path)
        assert report["codes_changed"] > 0.02  # else the test would show nothing
        assert set(plane.modules) < set(folder.int4.modules)
        for module, codes in expected.items():
            own = plane.codes(module, folder) if module in plane.modules else folder.quantized(module).codes
            assert torch.equal(own, codes), module
        seen.append(torch.cat([plane.codes(module, folder).flatten() for module in plane.modules]))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_plane_of_a_layer_that_pruning_left_out_holds_all_its_codes(tiny_float, tmp_path) -> None:
    prune_folder(tiny_float("llama"), tmp_path / "pruned", "magnitude", exclude=["q_proj", "down_proj"])
    quantize_folder(tmp_path / "pruned", tmp_path / "int4")
    adapter = write_qa_adapter(tmp_path / "adapter", tmp_path / "int4")
    (report,) = export_planes(tmp_path / "int4", adapter, ["max"])
    plane, folder = PlaneFile(Path(report["out"])), ModelFolder(tmp_path / "int4")
    expected = merged_codes(tmp_path / "int4", adapter, tmp_path / "merged", "max")
    assert any(module not in folder.masks for module in plane.modules)
    for module in plane.modules:
        assert torch.equal(plane.codes(module, folder), expected[module])


def test_a_plane_takes_half_a_byte_for_each_kept_weight(int4, adapter, tmp_path) -> None:
    (report,) = export_planes(int4, adapter, ["max"], out=tmp_path / "plane.safetensors")
    folder, stored = ModelFolder(int4), load_file(report["out"])
    for module, values in stored.items():
        kept = folder.mask(module).sum(1)  # [out]
        assert values.shape == (int(((kept + 1) // 2).sum()),)
        assert values.numel() < 0.27 * folder.mask(module).numel()  # 2 bits a weight at 50 %, rows end on a byte


def test_two_names_of_one_rank_are_one_plane_and_patterns_get_a_name_of_their_own(int4, adapter, tmp_path) -> None:
    mixed = {".*": 4, "mlp.up_proj": 8}
    reports = export_planes(int4, adapter, ["median", 6, "heuristic", mixed], out=tmp_path / "planes")
    assert [file.name for file in sorted((tmp_path / "planes").iterdir())][1:] == ["r6.safetensors"]
    assert len(reports) == 2
    ranks = PlaneFile(next((tmp_path / "planes").glob("r4-8-*"))).stamp.ranks
    assert {rank for module, rank in ranks.items() if module.endswith("up_proj")} == {8}
    assert {rank for module, rank in ranks.items() if not module.endswith("up_proj")} == {4}


def test_the_command_line_writes_planes_where_a_server_finds_them(int4, float_adapter, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([
            "export", "plane", str(int4), str(float_adapter), "--base", str(int4.with_name("pruned")), "--rank", "r6",
            "--rank", "max", "--json",
        ])  # fmt: skip
    assert not end.value.code
    planes = json.loads(capsys.readouterr().out)["planes"]
    assert [plane["out"] for plane in planes] == [
        str(float_adapter / "planes" / f"r{rank}.safetensors") for rank in (6, 8)
    ]
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_planes(int4, float_adapter, ["r6"], int4.with_name("pruned"))


def test_the_float_base_may_be_a_name_on_the_hub(int4, float_adapter, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "plane", str(int4), str(float_adapter), "--base", "no-such/model", "--rank", "r4"])
    assert end.value.code == 2
    assert "model no-such/model is neither a folder here nor a model on the hub" in capsys.readouterr().err


def test_what_has_no_plane_is_refused(int4, adapter, float_adapter, tiny_int4, tmp_path) -> None:
    dense = write_adapter(tmp_path / "dense")
    with pytest.raises(SQFTError, match="is not quantization-aware"):
        export_planes(int4, dense)
    with pytest.raises(MismatchError, match="is float: value planes are of its quantized folder"):
        export_planes(int4.with_name("pruned"), adapter)
    with pytest.raises(MismatchError, match="trained over the float base"):
        export_planes(int4, float_adapter, out=tmp_path / "planes")
    with pytest.raises(MismatchError, match="other zeros"):
        export_planes(tiny_int4("llama", sparsity=0.4), adapter, out=tmp_path / "planes")
    with pytest.raises(SQFTError, match="is one file, for 2 ranks"):
        export_planes(int4, adapter, [4, 8], out=tmp_path / "plane.safetensors")
    shutil.copytree(int4, tmp_path / "unstamped")
    shutil.rmtree(tmp_path / "unstamped" / "sqft")
    with pytest.raises(MismatchError, match="has no stamp"):
        export_planes(tmp_path / "unstamped", adapter)
    assert not (tmp_path / "planes").exists()


def test_damaged_and_foreign_files_are_refused(int4, adapter, tmp_path) -> None:
    export_planes(int4, adapter, [4], out=tmp_path / "plane.safetensors")
    whole, folder = (tmp_path / "plane.safetensors").read_bytes(), ModelFolder(int4)
    module = PlaneFile(tmp_path / "plane.safetensors").modules[0]
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="damaged or gone"):
        PlaneFile(cut).codes(module, folder)
    tensors = load_file(tmp_path / "plane.safetensors")
    save_file(tensors, cut)
    with pytest.raises(CheckpointError, match="is no value plane"):
        _ = PlaneFile(cut).stamp
    save_file(tensors, cut, metadata={KEY: json.dumps({"version": 2})})
    with pytest.raises(CheckpointError, match="version 2, this release reads up to 1"):
        _ = PlaneFile(cut).stamp
    for damaged in ("{", "[]", "{}", '{"version": null}', '{"version": 1}'):
        save_file(tensors, cut, metadata={KEY: damaged})
        with pytest.raises(CheckpointError, match="its stamp is damaged"):
            _ = PlaneFile(cut).stamp
    save_file({module: tensors[module][:-1].contiguous()}, cut)
    with pytest.raises(CheckpointError, match="does not fit"):
        PlaneFile(cut).codes(module, folder)


def test_an_adapter_is_known_by_its_weights_not_by_its_path(int4, adapter, tmp_path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "moved"}))
    assert adapter_identity(copy) == adapter_identity(adapter)
    (copy / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 17}))
    assert adapter_identity(copy) != adapter_identity(adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, copy / "adapter_model.safetensors")
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_identity(copy) != adapter_identity(adapter)


def test_a_base_is_known_by_its_codes_two_merges_have_the_same_stamp(int4, adapter, tmp_path, store) -> None:
    from sqft_plugins.tune.merge import merge_folder

    other = write_qa_adapter(tmp_path / "other", int4, seed=5)
    for name, own in (("a", adapter), ("b", other)):
        merge_folder(int4, own, tmp_path / name, 8)
    merged = [ModelFolder(tmp_path / name) for name in "ab"]
    stamps = [folder.stamp.model_dump(exclude={"created_by"}) for folder in merged]
    assert stamps[0] == stamps[1]
    assert base_identity(merged[0]) != base_identity(merged[1])
    again = write_qa_adapter(tmp_path / "again", tmp_path / "a")
    export_planes(tmp_path / "a", again, [4])
    ranks = PlaneFile(again / "planes" / "r4.safetensors").stamp.ranks
    assert find_plane(merged[0], again, ranks, "float").stamp.ranks == ranks
    with pytest.raises(SQFTError, match="is of another base"):
        find_plane(merged[1], again, ranks, "float")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_of_bad_numbers_gets_no_plane(int4, adapter, tmp_path, value) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(adapter, bad, ignore=shutil.ignore_patterns("planes"))
    change(bad, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value))
    with pytest.raises(CheckpointError, match=r"adapter bad: tensor .* holds NaN or infinity"):
        export_planes(int4, bad)
    assert not (bad / "planes").exists()


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_base_of_scales_that_are_none_has_no_plane(int4, adapter, tmp_path, store, scale) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(int4, broken)
    file = broken / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    save_file({**tensors, name: torch.full_like(tensors[name], scale)}, file, {"format": "pt"})
    for kind in ("int4", "float"):
        with pytest.raises(SQFTError, match=name):
            find_plane(ModelFolder(broken), adapter, {}, kind)


def test_a_plane_is_built_on_first_use_and_found_from_then_on(int4, adapter, tmp_path, store) -> None:
    folder = ModelFolder(int4)
    ranks = dict.fromkeys(PlaneFile(_exported(int4, adapter, tmp_path, 6)).modules, 6)
    built = find_plane(folder, adapter, ranks, "int4")
    assert built.path.parent == store_folder() == store
    for module in built.modules:
        own = PlaneFile(tmp_path / "r6.safetensors").codes(module, folder)
        assert torch.equal(built.codes(module, folder), own)
    built.path.write_bytes((tmp_path / "r6.safetensors").read_bytes()[:-8])  # of an earlier server, cut off in a copy
    assert find_plane(folder, adapter, ranks, "int4").codes(built.modules[0], folder) is not None
    written = built.path.stat().st_mtime_ns
    assert find_plane(folder, adapter, ranks, "int4").path.stat().st_mtime_ns == written


def test_a_plane_over_the_float_base_has_to_be_exported(int4, tmp_path, store) -> None:
    base, folder = int4.with_name("pruned"), ModelFolder(int4)
    adapter = write_qa_adapter(tmp_path / "adapter", int4, base, seed=1)
    ranks = dict.fromkeys(PlaneFile(_exported(int4, adapter, tmp_path, 4, base)).modules, 4)
    command = f"write its plane once with `sqft export plane {int4} {adapter} --base FLOAT --rank r4`"
    with pytest.raises(SQFTError, match=f"{re.escape(command)}$"):
        find_plane(folder, adapter, ranks, "float")
    copy = Path(shutil.copytree(adapter, tmp_path / "copy" / "adapter"))  # what the server holds: named is the original
    with pytest.raises(SQFTError, match=f"{re.escape(command)}$"):
        find_plane(folder, copy, ranks, "float", exported=adapter)
    export_planes(int4, adapter, [6], base)
    with pytest.raises(SQFTError, match=r"r6.safetensors in planes/ is of another base, other weights or other ranks"):
        find_plane(folder, adapter, ranks, "float")
    export_planes(int4, adapter, [4], base)
    found = find_plane(folder, adapter, ranks, "float")
    shutil.rmtree(adapter)  # removed while it is served: the file it was found in is the server's own
    assert found.stamp.ranks == ranks
    assert len(list(store.glob("*.safetensors"))) == 1


def test_a_damaged_plane_beside_a_good_one_is_left_alone(int4, tmp_path, store) -> None:
    base = int4.with_name("pruned")
    adapter = write_qa_adapter(tmp_path / "adapter", int4, base, seed=1)
    ranks = PlaneFile(_exported(int4, adapter, tmp_path, 4, base)).stamp.ranks
    export_planes(int4, adapter, [4], base)
    save_file({"a": torch.zeros(1)}, adapter / "planes" / "a.safetensors", metadata={KEY: "{"})
    assert find_plane(ModelFolder(int4), adapter, ranks, "float").stamp.ranks == ranks


def test_a_folder_that_takes_no_planes_is_told_with_its_variable(int4, adapter, store) -> None:
    folder = ModelFolder(int4)
    key = plane_key(base_identity(folder), adapter_identity(adapter), {})
    (store / f"{key}.lock").mkdir(parents=True)
    with pytest.raises(SQFTError, match=rf"cannot be written to {store} \(Is a directory\): see SQFT_PLANE_DIR"):
        find_plane(folder, adapter, {}, "int4")


def test_codes_go_to_the_device_of_their_layer(monkeypatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm_ext.planes.cache import load_plane
    from vllm_ext.quantization import linear

    layer, seen = torch.nn.Module(), []

    def plane(state, codes):
        seen.append(codes.device.type)
        return codes

    layer.weight_packed = torch.empty(0, device="meta")
    layer.sqft = SimpleNamespace(parts=[("m", None)], operator=SimpleNamespace(plane=plane), state=None)
    layer.quant_method = linear.SQFTLinearMethod(None, "m")
    monkeypatch.setattr(linear, "shard_of", lambda layer, parts, read: read(parts[0][0]))
    file = SimpleNamespace(modules=["m"], codes=lambda module, base: torch.zeros(2, 8, dtype=torch.uint8))
    load_plane(file, None, layer, True, lambda size: None)
    assert seen == ["meta"]


def test_without_peft_an_adapter_over_the_codes_has_its_planes_and_one_over_a_float_base_a_message(
    int4, adapter, float_adapter, tmp_path, monkeypatch
) -> None:
    import vllm_ext.planes.build as build

    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert export_planes(int4, adapter, out=tmp_path / "planes")
    with pytest.raises(SQFTError, match=r"needs PEFT: pip install 'sqft-plugins\[peft\]'"):
        export_planes(int4, float_adapter, base=int4.with_name("pruned"))


def test_an_adapter_over_other_codes_is_refused_without_its_model(tiny_int4, adapter) -> None:
    with pytest.raises(MismatchError, match="was trained through other scales"):
        export_planes(tiny_int4("llama", initializer_range=0.2), adapter)


def test_a_server_makes_a_plane_without_peft_and_transformers(int4, adapter, tmp_path) -> None:
    """They take most of a minute on a busy machine; all that this takes is torch and the folders."""
    what = {"model": str(int4), "adapter": str(adapter), "ranks": ["max"], "out": str(tmp_path / "r8.safetensors")}
    code = (
        "import sys; from vllm_ext.planes.build import main; status = main(sys.argv[1])\n"
        "assert not {'peft', 'transformers', 'vllm', 'peft_ext'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(what)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    export_planes(int4, adapter, ["max"], out=tmp_path / "here.safetensors")
    assert (tmp_path / "r8.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def _exported(int4, adapter, folder, rank, base=None):
    export_planes(int4, adapter, [rank], base, out=folder / f"r{rank}.safetensors")
    return folder / f"r{rank}.safetensors"


def test_the_identity_of_a_base_is_made_once_for_all_processes(int4, store, tmp_path, monkeypatch) -> None:
    from vllm_ext.planes import store as module

    base = tmp_path / "int4"
    shutil.copytree(int4, base)
    time.sleep(0.2)  # until a later writing must show
    found = module.known_identity(ModelFolder(base))
    assert found == base_identity(ModelFolder(base))
    monkeypatch.setattr(module, "base_identity", lambda folder: pytest.fail("hashed again"))
    assert module.known_identity(ModelFolder(base)) == found
    monkeypatch.undo()
    monkeypatch.setenv(PLANE_DIR, str(store))
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    monkeypatch.setattr(module, "base_identity", lambda folder: "hashed again")
    assert module.known_identity(ModelFolder(base)) == "hashed again"
