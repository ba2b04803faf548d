"""Files in parts: named, keyed and loaded as llama.cpp's own, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import DamagedFileError, GGUFError, TargetExistsError, VerificationError
from gguf_ext.inspector import inspect_gguf
from gguf_ext.reader import GGUFFile

LIMIT = 60_000


@pytest.fixture(scope="module")
def whole(llama_int4, tmp_path_factory):
    target = tmp_path_factory.mktemp("whole") / "m.gguf"
    export_gguf(llama_int4, target)
    return target


@pytest.fixture(scope="module")
def parts(llama_int4, tmp_path_factory):
    target = tmp_path_factory.mktemp("parts") / "m.gguf"
    return export_gguf(llama_int4, target, split_max_size=LIMIT)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_parts_have_llama_cpps_names_and_keys(parts, whole):
    files = [GGUFReader(path) for path in parts.parts]
    count = len(files)
    assert count > 2
    assert [path.rpartition("/")[2] for path in parts.parts] == [
        f"m-{index + 1:05d}-of-{count:05d}.gguf" for index in range(count)
    ]
    names = []
    for index, file in enumerate(files):
        assert file.fields["split.no"].contents() == index
        assert file.fields["split.count"].contents() == count
        assert file.fields["split.tensors.count"].contents() == len(GGUFReader(whole).tensors)
        assert ("tokenizer.ggml.tokens" in file.fields) == (index == 0)
        names += [tensor.name for tensor in file.tensors]
    assert names == [tensor.name for tensor in GGUFReader(whole).tensors]
    assert parts.bytes == sum(os.stat(path).st_size for path in parts.parts)


def test_the_packages_own_parts_are_above_the_limit(tmp_path):
    """Why the split is ours: GGUFWriter counts the tensors alone."""
    writer = GGUFWriter(tmp_path / "p.gguf", "llama", split_max_size=5000)
    writer.add_array("tokenizer.ggml.tokens", ["token"] * 500)
    for index in range(4):
        writer.add_tensor(f"t{index}", torch.zeros(600).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert len(sizes) == 2
    assert sizes[0] > 5000


def test_no_part_is_above_the_limit_but_one_of_a_single_tensor(parts):
    sizes = {path: os.stat(path).st_size for path in parts.parts}
    large = [path for path, size in sizes.items() if size > LIMIT]
    assert all(len(GGUFReader(path).tensors) == 1 for path in large)
    assert len(large) < len(sizes)


def test_the_first_part_counts_all_that_it_holds(llama_int4, tmp_path):
    """A limit of one byte less than the first part: it must have a tensor less."""
    loose = export_gguf(llama_int4, tmp_path / "loose.gguf", split_max_size=250_000)
    tight = os.stat(loose.parts[0]).st_size - 1
    report = export_gguf(llama_int4, tmp_path / "tight.gguf", split_max_size=tight)
    assert os.stat(report.parts[0]).st_size <= tight
    assert len(GGUFReader(report.parts[0]).tensors) < len(GGUFReader(loose.parts[0]).tensors)


def test_llama_cpp_runs_the_first_part_as_it_runs_the_whole_file(parts, whole):
    tokens, found = list(range(4, 60)), []
    for path in (parts.path, whole):
        with LlamaSession(path, threads=1) as session:
            found.append(torch.cat([chunk.clone() for chunk in session.logits(tokens)]))
    assert torch.equal(*found)


def test_verify_and_inspect_read_all_parts(parts, whole, llama_int4):
    report = verify_gguf(llama_int4, parts.path)
    assert report.exact
    assert report.equal == report.tensors
    one, other = inspect_gguf(parts.path), inspect_gguf(whole)
    assert one["layers"] == other["layers"]
    assert one["bytes"] == parts.bytes
    last = GGUFFile(parts.path).tensors["blk.1.ffn_down.weight"]
    with open(parts.parts[last.part], "r+b") as file:
        file.seek(last.offset + 3)
        byte = file.read(1)[0]
        file.seek(last.offset + 3)
        file.write(bytes([byte ^ 1]))
        try:
            file.flush()
            assert [item.name for item in verify_gguf(llama_int4, parts.path).differences] == [last.name]
        finally:
            file.seek(last.offset + 3)
            file.write(bytes([byte]))


def test_a_small_file_is_not_split(llama_int4, tmp_path):
    report = export_gguf(llama_int4, tmp_path / "m.gguf", split_max_size="1G")
    assert report.parts == []
    assert _names(tmp_path) == ["m.gguf"]


# --- whole or not at all ---


def test_what_is_there_stays_without_overwrite_and_goes_with_it(llama_int4, llama, tmp_path):
    target = tmp_path / "m.gguf"
    export_gguf(llama_int4, target, split_max_size=LIMIT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TargetExistsError, match=r"m-00001-of-.*--overwrite"):
        export_gguf(llama, target, split_max_size=LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    target.write_text("old and whole")
    report = export_gguf(llama, target, split_max_size=LIMIT, overwrite=True)
    assert len(report.parts) != len(before)
    assert _names(tmp_path) == [path.rpartition("/")[2] for path in report.parts]
    assert verify_gguf(llama, report.path).exact


def test_parts_go_where_the_new_file_needs_none(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "m.gguf", split_max_size=LIMIT)
    export_gguf(llama_int4, tmp_path / "m.gguf", split_max_size="1G", overwrite=True)
    assert _names(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_folder_is_never_replaced(limit, llama_int4, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").write_text("x")
    with pytest.raises(GGUFError, match="is a folder, a file goes there"):
        export_gguf(llama_int4, tmp_path / "models", split_max_size=limit, overwrite=True)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["models", "models/mine"]


@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_error_while_renaming_brings_the_old_ones_back(at, llama_int4, tmp_path, monkeypatch):
    target = tmp_path / "m.gguf"
    export_gguf(llama_int4, target, split_max_size=LIMIT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, calls = os.replace, []

    def fail(source, place):
        calls.append(source)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        rename(source, place)

    monkeypatch.setattr("gguf_ext.write.split.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        export_gguf(llama_int4, target, split_max_size=LIMIT, overwrite=True, float_type="f32")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_parts_that_do_not_verify_are_not_kept(llama_int4, tmp_path, monkeypatch):
    from gguf_ext.write.transcode import block_bytes

    def flipped(weight, kind):
        raw = block_bytes(weight, kind)
        raw[0, 5] ^= 1
        return raw

    monkeypatch.setattr("gguf_ext.write.plan.block_bytes", flipped)
    with pytest.raises(VerificationError):
        export_gguf(llama_int4, tmp_path / "m.gguf", split_max_size=LIMIT)
    assert _names(tmp_path) == []


KILLED = """
import os, signal, sys
from gguf_ext import export_gguf
from gguf_ext.write.plan import Planned
import gguf_ext.write.split
if sys.argv[3] == "writing":
    original, calls = Planned.pieces, []
    def pieces(self, folder):
        calls.append(self)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from original(self, folder)
    Planned.pieces = pieces
else:
    rename, calls = os.replace, []
    def replace(source, place):
        calls.append(source)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, place)
    gguf_ext.write.split.os.replace = replace
export_gguf(sys.argv[1], sys.argv[2], split_max_size=int(sys.argv[4]), overwrite=True)
"""


@pytest.mark.once
@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_killed_there_is_the_old_file_or_none(when, llama_int4, tmp_path):
    target = tmp_path / "m.gguf"
    target.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, llama_int4, target, when, str(LIMIT)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("m-00001-of-*.gguf"))
    if when == "writing":
        assert target.read_text() == "old"
        assert not list(tmp_path.glob("m-*.gguf"))


# --- parts that do not belong together ---


def _copy(parts, folder):
    for path in parts.parts:
        shutil.copy(path, folder)
    return folder / parts.path.rpartition("/")[2]


def test_another_part_than_the_first_names_the_first(parts):
    with pytest.raises(GGUFError, match=r"is part 2 of .*: give the first, m-00001-of-"):
        GGUFFile(parts.parts[1])


def test_a_missing_part_and_another_name_are_named(parts, tmp_path):
    first = _copy(parts, tmp_path)
    second = tmp_path / parts.parts[1].rpartition("/")[2]
    held = second.read_bytes()
    second.unlink()
    with pytest.raises(GGUFError, match=r"parts but m-00002-of-.* is not beside it"):
        GGUFFile(first)
    second.write_bytes((tmp_path / parts.parts[2].rpartition("/")[2]).read_bytes())
    with pytest.raises(DamagedFileError, match=r"m-00002-of-.* is not part 2 of .* inside"):
        GGUFFile(first)
    second.write_bytes(held)
    GGUFFile(first)
    first.rename(tmp_path / "other.gguf")
    with pytest.raises(GGUFError, match="not called so: give it back its name, NAME-00001-of"):
        GGUFFile(tmp_path / "other.gguf")


def test_a_part_of_another_export_is_a_difference_or_refused(parts, llama, llama_int4, tmp_path):
    """Of another model, of another type, or cut elsewhere; a part with the very same bytes is no other."""
    tensors = load_file(llama / "model.safetensors")
    model = shutil.copytree(llama, tmp_path / "model")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    exports = {}
    for name, folder, options in (
        ("own", llama, {"float_type": "f32"}),
        ("weights", model, {"float_type": "f32"}),
        ("cut", llama, {"float_type": "f32", "split_max_size": 90_000}),
    ):
        (tmp_path / name).mkdir()
        exports[name] = export_gguf(folder, tmp_path / name / "m.gguf", **{"split_max_size": LIMIT, **options})
    first, count = exports["own"].path, len(exports["own"].parts)
    for index in (0, 1, count - 1):
        for other in ("weights", "cut"):
            if index >= len(exports[other].parts):
                continue
            mixed = _copy(exports["own"], _emptied(tmp_path / "mixed"))
            shutil.copy(exports[other].parts[index], mixed.with_name(exports["own"].parts[index].rpartition("/")[2]))
            if other == "cut":
                with pytest.raises(GGUFError, match=r"is not part|is part 1 of"):
                    verify_gguf(llama, mixed)
            else:
                names = {tensor.name for tensor in GGUFReader(exports["own"].parts[index]).tensors}
                assert {item.name for item in verify_gguf(llama, mixed).differences} == names
    assert verify_gguf(llama, first).exact


def _emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def test_the_name_of_a_part_is_no_target(llama_int4, tmp_path):
    with pytest.raises(GGUFError, match="is the name of a part"):
        export_gguf(llama_int4, tmp_path / "m-00001-of-00002.gguf", split_max_size="1M")
