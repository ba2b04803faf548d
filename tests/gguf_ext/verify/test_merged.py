"""`sqft verify BASE.gguf MERGED.gguf`: what a merge may change is told from all else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFValueType, GGUFWriter
from helpers_blocks import BITS, FROZEN
from helpers_gguf import rewritten
from helpers_merge import COLUMNS, GRIDS, ROWS, write_file

from gguf_ext import export_gguf
from gguf_ext.blocks import TensorType, unpack
from gguf_ext.merge import merge_file
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.merged import verify_merged
from sqft_plugins.cli import main

NOTE = {"adapter": "adapters/mine", "adapter_hash": "a" * 64}


def codes_for(*kinds: TensorType, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, COLUMNS)
    return {
        kind.name: torch.randint(0, 2 ** BITS[kind], shape, generator=generator, dtype=torch.uint8) for kind in kinds
    }


@pytest.fixture
def base(tmp_path):
    return write_file(tmp_path / "base.gguf")


@pytest.fixture
def merged(base, tmp_path):
    merge_file(base, tmp_path / "merged.gguf", codes_for(TensorType.Q4_K, TensorType.Q6_K), NOTE)
    return tmp_path / "merged.gguf"


def changed_byte(file, offset: int, to: int = 0x55):
    data = bytearray(file.read_bytes())
    data[offset] = data[offset] ^ to
    file.write_bytes(data)


def test_a_merge_is_one(base, merged):
    report = verify_merged(base, merged)
    assert (report.ok, report.differences) == (True, [])
    assert (report.tensors, report.equal, report.recoded) == (len(GRIDS) + 3, len(GRIDS) + 1, 2)
    old = {name: unpack(GGUFFile(base).raw(name), TensorType[name])[0] for name in ("Q4_K", "Q6_K")}
    new = codes_for(TensorType.Q4_K, TensorType.Q6_K)
    assert report.changed == sum(int((old[name] != new[name]).sum()) for name in old)
    assert report.weights == 2 * ROWS * COLUMNS
    assert [note["adapter"] for note in report.merges] == ["adapters/mine"]


def test_a_file_is_a_merge_of_nothing_into_itself(base, tmp_path):
    shutil.copy(base, tmp_path / "copy.gguf")
    report = verify_merged(base, tmp_path / "copy.gguf")
    assert report.ok
    assert report.equal == report.tensors


def test_two_merges_of_one_base(base, merged, tmp_path):
    other = {"adapter": "adapters/other", "adapter_hash": "b" * 64}
    merge_file(merged, tmp_path / "two.gguf", codes_for(TensorType.Q4_K, TensorType.Q8_0, seed=1), other)
    since_base, since_merge = verify_merged(base, tmp_path / "two.gguf"), verify_merged(merged, tmp_path / "two.gguf")
    assert since_base.ok
    assert since_merge.ok
    assert [note["adapter"] for note in since_base.merges] == ["adapters/mine", "adapters/other"]
    assert [note["adapter"] for note in since_merge.merges] == ["adapters/other"]
    assert (since_base.recoded, since_merge.recoded) == (3, 2)
    backwards = verify_merged(tmp_path / "two.gguf", base)
    assert [item.what for item in backwards.differences] == ["does not begin with the merges of the base"]


@pytest.mark.parametrize("kind", GRIDS, ids=lambda kind: kind.name)
def test_one_byte_of_a_scale_is_found(base, merged, kind):
    changed_byte(merged, GGUFFile(merged).tensors[kind.name].offset + FROZEN[kind][0][0])
    found = {item.name: item.what for item in verify_merged(base, merged).differences}
    assert found[kind.name].startswith("differs in its scales, not in codes alone")
    assert found["sqft.merges"] == "is of other tensors than the file has: it was changed after the merge"


@pytest.mark.parametrize(("name", "words"), [("first.norm", "F32 has no codes"), ("codebook", "IQ2_XXS has no codes")])
def test_one_byte_of_what_has_no_codes_is_found(base, merged, name, words):
    changed_byte(merged, GGUFFile(merged).tensors[name].offset)
    found = {item.name: item.what for item in verify_merged(base, merged).differences}
    assert found[name] == f"differs, and {words}"


def test_one_code_after_the_merge_is_found(base, merged):
    """Codes alone differ, as in a merge: the note says that it was none."""
    kind = TensorType.Q8_0
    changed_byte(merged, GGUFFile(merged).tensors[kind.name].offset + 5)
    report = verify_merged(base, merged)
    assert (report.recoded, [item.name for item in report.differences]) == (3, ["sqft.merges"])


def test_codes_without_a_note_are_found(base, tmp_path):
    shutil.copy(base, tmp_path / "copy.gguf")
    changed_byte(tmp_path / "copy.gguf", GGUFFile(base).tensors["Q8_0"].offset + 5)
    (found,) = verify_merged(base, tmp_path / "copy.gguf").differences
    assert (found.name, found.what) == ("sqft.merges", "is missing, but codes differ")


def test_another_base_is_found(base, merged, tmp_path):
    """Of the same architecture and scales, by the hash of its tensors."""
    merge_file(base, tmp_path / "second.gguf", codes_for(TensorType.Q4_K, seed=2), {})
    plain = tmp_path / "plain.gguf"
    data = (tmp_path / "second.gguf").read_bytes()
    file = GGUFFile(tmp_path / "second.gguf")
    begin, end = file.parts[0].entries["sqft.merges"]
    head = (
        data[:16] + (len(file.metadata) - 1).to_bytes(8, "little") + data[24:begin] + data[end : file.parts[0].table[1]]
    )
    plain.write_bytes(head + bytes(-len(head) % 64) + data[file.parts[0].start :])
    found = verify_merged(plain, merged).differences
    assert [(item.name, item.what) for item in found] == [("sqft.merges", "names another base than this")]


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"general.name": ("other", "string")}, "general.name", "has another value"),
        ({"llama.context_length": (512, "uint64")}, "llama.context_length", "has another value"),
        ({"added": (1, "uint8")}, "added", "is in the merged file only"),
        (
            {"sqft.x": (1, "uint8")},
            "sqft.x",
            "is in the merged file only",
        ),  # one of these makes a dense file sparse
        ({"llama.block_count": None}, "llama.block_count", "is in the base only"),
    ],
)
def test_metadata_that_a_merge_leaves_alone_is_found(llama_int4, tmp_path, change, name, words):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    file = rewritten(tmp_path / "m.gguf", tmp_path / "odd.gguf", change)
    plain = rewritten(tmp_path / "m.gguf", tmp_path / "plain.gguf", {})
    assert verify_merged(plain, rewritten(tmp_path / "m.gguf", tmp_path / "again.gguf", {})).ok
    assert [(item.name, item.what) for item in verify_merged(plain, file).differences] == [(name, words)]


def test_other_tensors_are_found(base, tmp_path):
    writer = GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("last.norm", np.zeros(7, np.float32))
    writer.add_tensor("new", np.zeros(7, np.float32))
    writer.add_key_value("ints", [1, -2], GGUFValueType.ARRAY, sub_type=GGUFValueType.INT8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {item.name: item.what for item in verify_merged(base, tmp_path / "odd.gguf").differences}
    assert found["Q4_K"] == "is in the base only"
    assert found["new"] == "is in the merged file only"
    assert found["last.norm"] == "is F32 (5,) in the base, F32 (7,) in the merged file"


def test_the_command(base, merged, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["verify", *map(str, arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    code, out, _ = run(base, merged)
    assert code == 0
    assert "merged: adapters/mine\n9 of 11 tensors byte-equal\n2 with other codes alone: " in out
    assert out.endswith("equal but for codes\n")
    code, out, _ = run(base, merged, "--json")
    assert (code, json.loads(out)["recoded"]) == (0, 2)
    code, _, err = run(base, merged, "--rounding", "allow")
    assert code != 0
    assert "options compare FILE.gguf with a model folder" in err
    changed_byte(merged, GGUFFile(merged).tensors["first.norm"].offset)
    code, out, _ = run(base, merged)
    assert code == 1
    assert out.endswith("different\n")
