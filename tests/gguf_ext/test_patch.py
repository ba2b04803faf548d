"""A patch leads from one file to the other and back, bit for bit, or says why not.

Run it: `pytest tests/gguf_ext/test_patch.py`.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_blocks import BITS
from helpers_merge import COLUMNS, GRIDS, ROWS, write_file
from safetensors.torch import load_file, save_file

from gguf_ext.blocks import TensorType, codes_of
from gguf_ext.cli.patch import export_patch_command, patch_command
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.merge import merge_file
from gguf_ext.patch import KEY, apply_patch, export_patch
from gguf_ext.reader import GGUFFile


def merged(source, target, seed: int = 0):
    """One code in fifty is moved."""
    generator, file = np.random.default_rng(seed), GGUFFile(source)
    codes = {}
    for kind in GRIDS:
        held = codes_of(file.raw(kind.name), TensorType[kind.name])
        moved = generator.integers(0, 2 ** BITS[kind], (ROWS, COLUMNS), dtype=np.uint8)
        codes[kind.name] = torch.from_numpy(np.where(generator.random(held.shape) < 0.02, moved, held))
    merge_file(source, target, codes, {"adapter": f"adapters/{seed}", "adapter_hash": f"{seed}" * 64})
    return target


@pytest.fixture
def files(tmp_path):
    base = write_file(tmp_path / "base.gguf")
    return base, merged(base, tmp_path / "merged.gguf")


def test_a_patch_is_applied_and_taken_back_bit_for_bit(files, tmp_path):
    base, target = files
    report = export_patch(base, target, tmp_path / "a.patch")
    done = apply_patch(base, tmp_path / "a.patch", tmp_path / "there.gguf")
    back = apply_patch(target, tmp_path / "a.patch", tmp_path / "back.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == target.read_bytes()
    assert (tmp_path / "back.gguf").read_bytes() == base.read_bytes()
    assert (done.undone, back.undone, report["tensors"]) == (False, True, len(GRIDS))
    assert 0 < report["changed"] < 0.02 * report["weights"]
    assert [note["adapter"] for note in report["merges"]] == ["adapters/0"]


def test_patches_of_two_merges_are_taken_back_one_after_the_other(files, tmp_path):
    base, first = files
    second = merged(first, tmp_path / "second.gguf", seed=1)
    export_patch(base, first, tmp_path / "a.patch")
    export_patch(first, second, tmp_path / "b.patch")
    export_patch(base, second, tmp_path / "both.patch")
    apply_patch(second, tmp_path / "b.patch", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == first.read_bytes()
    apply_patch(base, tmp_path / "both.patch", tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == second.read_bytes()
    with pytest.raises(GGUFError, match=r"base.gguf is neither the base of .*b.patch nor what it makes of it"):
        apply_patch(base, tmp_path / "b.patch", tmp_path / "no.gguf")


def test_a_file_in_parts_is_patched_part_by_part(tmp_path):
    write_file(tmp_path / "base", split_max_tensors=4)
    base = sorted(tmp_path.glob("base-*"))
    target = sorted(merged(base[0], tmp_path / "merged.gguf").parent.glob("merged-*")) or sorted(
        tmp_path.glob("merged*")
    )
    assert len(base) == len(target) == 3
    export_patch(base[0], target[0], tmp_path / "a.patch")
    apply_patch(target[0], tmp_path / "a.patch", tmp_path / "back.gguf")
    again = sorted(tmp_path.glob("back-*"))
    assert [part.read_bytes() for part in again] == [part.read_bytes() for part in base]


def test_what_is_no_merge_of_the_base_has_no_patch(files, tmp_path):
    base, target = files
    other = write_file(tmp_path / "other.gguf", entries=4)
    for one, two, why in ((base, base, "both are the same"), (target, base, "sqft.merges"), (other, target, "more.3")):
        with pytest.raises(GGUFError, match=f"with an adapter merged in .*{why}"):
            export_patch(one, two, tmp_path / "a.patch")
    assert not (tmp_path / "a.patch").exists()


def test_damage_leaves_no_file(files, tmp_path):
    base, target = files
    export_patch(base, target, patch := tmp_path / "a.patch")
    tensors = {name: tensor.clone() for name, tensor in load_file(patch).items()}  # the file is written to below
    out = tmp_path / "out.gguf"
    with pytest.raises(GGUFError, match="is the file itself, which is never written to"):
        apply_patch(base, patch, base, overwrite=True)

    spoiled = bytearray(base.read_bytes())
    spoiled[-300] ^= 1  # of a tensor: the header is as it was
    (tmp_path / "spoiled.gguf").write_bytes(spoiled)
    with pytest.raises(DamagedFileError, match="the result would not be the other file"):
        apply_patch(tmp_path / "spoiled.gguf", patch, out)

    stamp = {KEY: _stamp(patch)}
    changes = {
        "cut": (lambda: patch.write_bytes(patch.read_bytes()[:-9]), "is damaged or gone"),
        "another": (lambda: save_file(tensors, patch), "is no patch: make one with"),
        "newer": (
            lambda: save_file(tensors, patch, {KEY: stamp[KEY].replace('"version":1', '"version":2')}),
            "upgrade",
        ),
        "spoiled": (lambda: save_file({**tensors, "Q4_K": tensors["Q4_K"] ^ 1}, patch, stamp), "Q4_K is damaged"),
        "shorter": (lambda: save_file({**tensors, "Q4_K": tensors["Q8_0"].clone()}, patch, stamp), "bytes, not"),
    }
    for change, message in changes.values():
        change()
        with pytest.raises(DamagedFileError, match=message):
            apply_patch(base, patch, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def _stamp(patch) -> str:
    from safetensors import safe_open

    with safe_open(patch, framework="pt") as handle:
        return handle.metadata()[KEY]


def test_the_command_line_patches_and_takes_back(files, tmp_path):
    base, target = files
    call = CliRunner().invoke
    made = call(export_patch_command, [str(base), str(target), "--out", str(tmp_path / "a.patch")])
    assert made.exit_code == 0, made.output
    assert f"codes of {len(GRIDS)} tensors" in made.output
    copy = shutil.copy(target, tmp_path / "copy.gguf")
    back = call(patch_command, [str(copy), str(tmp_path / "a.patch"), "--out", str(tmp_path / "back.gguf"), "--json"])
    assert json.loads(back.stdout)["undone"] is True
    assert (tmp_path / "back.gguf").read_bytes() == base.read_bytes()
