"""A merge changes codes and nothing else: both files are walked byte by byte, by a parser that is none of ours.

Run it: `pytest tests/gguf_ext/merge`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers_blocks import BITS, FROZEN, naive_codes
from helpers_merge import COLUMNS, GRIDS, ROWS, Walked, walk, write_file

from gguf_ext import LlamaSession, export_gguf
from gguf_ext.blocks import TensorType, unpack
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.merge import merge_file, merges_of
from gguf_ext.reader import GGUFFile
from sqft_plugins._version import VERSION

NOTE = {"adapter": "adapters/mine", "adapter_hash": "a" * 64, "ranks": {"Q4_K": 8}}


@pytest.fixture
def file(tmp_path):
    return write_file(tmp_path / "base.gguf")


def random_codes(names, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(generator.integers(0, 2 ** BITS[TensorType[name]], (ROWS, COLUMNS), dtype=np.uint8))
        for name in names
    }


def assert_only_codes_differ(before: Walked, after: Walked, codes: dict[str, torch.Tensor]) -> None:
    """Of every tensor that is in `codes` the codes, of no other anything, and the entry `sqft.merges`."""
    assert after.version == before.version
    added = {key: value for key, value in after.entries.items() if key not in before.entries}
    assert set(added) <= {"sqft.merges"}
    kept = [item for item in after.entries.items() if item[0] != "sqft.merges"]
    assert kept == [item for item in before.entries.items() if item[0] != "sqft.merges"]
    assert after.table == before.table
    assert len(after.data) == len(before.data)

    ends = [*sorted(offset for _, _, offset in before.tensors.values())[1:], len(before.data)]
    for name, (number, (columns, *rows), offset) in before.tensors.items():
        end = min(end for end in ends if end > offset)
        old, new = before.data[offset:end], after.data[offset:end]
        if name not in codes:
            assert new == old, name
            continue

        kind = TensorType(number)
        weights, size = BLOCKS[kind]
        (bytes_there,) = (count * columns // weights * size for count in rows)
        assert new[bytes_there:] == old[bytes_there:]
        base, merged = (np.frombuffer(data[:bytes_there], np.uint8).reshape(-1, size) for data in (old, new))
        np.testing.assert_array_equal(naive_codes(kind, merged), codes[name].numpy().reshape(-1, weights))
        for start, stop in FROZEN[kind]:
            np.testing.assert_array_equal(merged[:, start:stop], base[:, start:stop])


def test_only_codes_differ(file, tmp_path):
    codes = random_codes(kind.name for kind in GRIDS)
    done = merge_file(file, tmp_path / "out.gguf", codes, NOTE)
    before, after = walk(file), walk(tmp_path / "out.gguf")
    assert_only_codes_differ(before, after, codes)
    assert (done.path, done.paths) == (str(tmp_path / "out.gguf"), [str(tmp_path / "out.gguf")])
    assert done.bytes == os.path.getsize(done.path)
    assert (done.tensors, done.weights) == (len(GRIDS), len(GRIDS) * ROWS * COLUMNS)
    old = {name: unpack(GGUFFile(file).raw(name), TensorType[name])[0] for name in codes}
    assert done.changed == sum(int((old[name] != codes[name]).sum()) for name in codes)


@pytest.mark.parametrize("alignment", [None, 8, 32, 4096])
@pytest.mark.parametrize("entries", [0, 1, 2, 5])
def test_every_length_of_the_header_leaves_tensors_in_place(tmp_path, alignment, entries):
    """The header grows, so all tensors move; the offsets from the first of them do not."""
    file = write_file(tmp_path / "base.gguf", alignment, entries)
    codes = random_codes(["Q6_K"])
    merge_file(file, tmp_path / "out.gguf", codes, NOTE)
    before, after = walk(file), walk(tmp_path / "out.gguf")
    assert_only_codes_differ(before, after, codes)
    assert after.start % (alignment or 32) == 0


def test_the_codes_that_are_there_change_nothing(file, tmp_path):
    read = GGUFFile(file)
    same = {kind.name: unpack(read.raw(kind.name), kind)[0] for kind in GRIDS}
    done = merge_file(file, tmp_path / "out.gguf", same, NOTE)
    assert done.changed == 0
    assert walk(tmp_path / "out.gguf").data == walk(file).data


def test_the_file_says_what_was_merged(file, tmp_path):
    codes = random_codes(["Q4_K", "Q8_0"])
    done = merge_file(file, tmp_path / "out.gguf", codes, NOTE)
    (note,) = merges_of(GGUFFile(tmp_path / "out.gguf"))
    base, data = (hashlib.sha256(walk(path).data).hexdigest() for path in (file, tmp_path / "out.gguf"))
    assert note == {**NOTE, "base_hash": base, "data_hash": data, "version": VERSION}
    assert (done.base_hash, done.data_hash) == (base, data)


def test_another_adapter_adds_a_line(file, tmp_path):
    first, second = random_codes(["Q4_K"]), random_codes(["Q4_K", "Q5_1"], seed=1)
    merge_file(file, tmp_path / "one.gguf", first, NOTE)
    other = {"adapter": "adapters/other", "adapter_hash": "b" * 64}
    merge_file(tmp_path / "one.gguf", tmp_path / "two.gguf", second, other)
    before, after = walk(tmp_path / "one.gguf"), walk(tmp_path / "two.gguf")
    assert_only_codes_differ(before, after, second)
    notes = merges_of(GGUFFile(tmp_path / "two.gguf"))
    assert [note["adapter"] for note in notes] == ["adapters/mine", "adapters/other"]
    assert notes[0] == merges_of(GGUFFile(tmp_path / "one.gguf"))[0]
    assert notes[1]["base_hash"] == hashlib.sha256(before.data).hexdigest() == notes[0]["data_hash"]


@pytest.mark.parametrize("tensors", [2, 5])
def test_a_file_in_parts_stays_in_parts(tmp_path, tensors):
    write_file(tmp_path / "base.gguf", split_max_tensors=tensors)
    sources = sorted(tmp_path.glob("base-*.gguf"))
    assert len(sources) == -(-(len(GRIDS) + 3) // tensors)
    codes = random_codes(["Q4_K", "Q3_K", "MXFP4"])
    done = merge_file(sources[0], tmp_path / "out.gguf", codes, NOTE)
    targets = sorted(tmp_path.glob("out-*.gguf"))
    assert done.paths == list(map(str, targets))
    assert done.path == str(tmp_path / f"out-00001-of-{len(sources):05}.gguf")
    assert [path.name for path in targets] == [path.name.replace("base", "out") for path in sources]
    for source, target in zip(sources, targets, strict=True):
        assert_only_codes_differ(walk(source), walk(target), codes)
    assert all("sqft.merges" not in walk(target).entries for target in targets[1:])
    whole = hashlib.sha256(b"".join(walk(source).data for source in sources)).hexdigest()
    assert merges_of(GGUFFile(targets[0]))[0]["base_hash"] == whole == done.base_hash


def test_codes_are_asked_for_one_tensor_after_the_other(file, tmp_path):
    """So that the caller can make them when they are wanted."""
    codes, asked = random_codes(["Q8_0", "Q4_K", "Q3_K"]), []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return codes[name]

    merge_file(file, tmp_path / "out.gguf", Lazy.fromkeys(codes), NOTE)
    assert asked == ["Q4_K", "Q8_0", "Q3_K"]  # as they stand in the file


def test_the_original_stays_as_it_is(file, tmp_path):
    file.chmod(0o444)
    before = (file.read_bytes(), file.stat())
    merge_file(file, tmp_path / "out.gguf", random_codes(["Q4_K"]), NOTE)
    after = file.stat()
    assert file.read_bytes() == before[0]
    assert (after.st_mtime_ns, after.st_ino) == (before[1].st_mtime_ns, before[1].st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "out.gguf"]


def test_a_source_that_changes_meanwhile_is_refused(file, tmp_path):
    """The codes are of the file that was opened, so no other file may get them."""

    class Touching(dict):
        def __getitem__(self, name):
            with open(file, "r+b") as handle:
                handle.seek(-1, os.SEEK_END)
                handle.write(b"\x07")
            return random_codes([name])[name]

    with pytest.raises(DamagedFileError, match=r"base\.gguf was changed while it was read"):
        merge_file(file, tmp_path / "out.gguf", Touching(Q4_K=None), NOTE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_a_header_that_changes_unnoticed_by_the_clock_is_refused(file, tmp_path):
    read = GGUFFile(file)
    data = file.read_bytes().replace(b"drei", b"vier")
    with open(file, "r+b") as handle:
        handle.write(data)
    read.parts[0].record = GGUFFile(file).parts[0].record  # as a coarse clock would leave it
    with pytest.raises(DamagedFileError, match=r"base\.gguf was changed while it was read"):
        merge_file(read, tmp_path / "out.gguf", random_codes(["Q4_K"]), NOTE)


def test_a_source_that_shrinks_meanwhile_is_refused(file, tmp_path):
    class Cutting(dict):
        def __getitem__(self, name):
            os.truncate(file, file.stat().st_size // 2)
            return random_codes([name])[name]

    with pytest.raises(DamagedFileError, match=r"base\.gguf ends before it should: it was changed while"):
        merge_file(file, tmp_path / "out.gguf", Cutting(Q4_K=None), NOTE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (
            torch.zeros(ROWS, COLUMNS + 32, dtype=torch.uint8),
            r"codes of Q4_K are uint8 \(6, 544\): give uint8, \(6, 512\)",
        ),
        (torch.zeros(ROWS, COLUMNS, dtype=torch.int8), "codes of Q4_K are int8"),
        (torch.full((ROWS, COLUMNS), 16, dtype=torch.uint8), r"code=16 is too large for Q4_K: use 0\.\.15"),
    ],
)
def test_codes_that_do_not_fit_leave_no_file(file, tmp_path, codes, words):
    with pytest.raises(GGUFError, match=words):
        merge_file(file, tmp_path / "out.gguf", {"Q4_K": codes}, NOTE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_llama_cpp_runs_what_was_merged(llama_int4, tmp_path):
    """With the codes that are there the model says the same; with others it says something else."""
    export_gguf(llama_int4, tmp_path / "base.gguf")
    read = GGUFFile(tmp_path / "base.gguf")
    names = [name for name, info in read.tensors.items() if info.type_name == "Q4_0"]
    same = {name: unpack(read.raw(name), TensorType.Q4_0)[0] for name in names}
    merge_file(read, tmp_path / "same.gguf", same, NOTE)
    merge_file(read, tmp_path / "other.gguf", {names[0]: same[names[0]].flip(0)}, NOTE)
    logits = {}
    for name in ("base", "same", "other"):
        with LlamaSession(tmp_path / f"{name}.gguf") as session:
            logits[name] = torch.cat(list(session.logits([2, 5, 9, 11]))).numpy()
    np.testing.assert_array_equal(logits["base"], logits["same"])
    assert not np.array_equal(logits["base"], logits["other"])


LARGE = """
import sys
from pathlib import Path
import torch
from gguf_ext.merge import merge_file
source, target, rows, columns, tensors = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
class Codes(dict):
    def __getitem__(self, name):
        return torch.full((rows, columns), 5, dtype=torch.uint8)
def peak():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is forgotten
before = peak()
merge_file(source, target, Codes.fromkeys(f"blk.{i}" for i in range(tensors)), {"adapter": "a"})
print(peak() - before)
"""


@pytest.mark.once
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_memory_is_one_tensor(tmp_path):
    """0.2 GB in 10 tensors: at the peak one of them is there, as a byte for each code, and some megabytes."""
    from gguf import GGMLQuantizationType, GGUFWriter

    rows, columns, tensors = 4096, 9216, 10
    size = rows * columns // 256 * 144
    writer = GGUFWriter(tmp_path / "large.gguf", "llama")
    for index in range(tensors):
        kind = GGMLQuantizationType.Q4_K
        writer.add_tensor_info(f"blk.{index}", (rows, columns // 256 * 144), np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-os.path.getsize(tmp_path / "large.gguf") // 32) * 32
    os.truncate(tmp_path / "large.gguf", start + tensors * size)  # a hole, which takes no place

    arguments = [str(tmp_path / "large.gguf"), str(tmp_path / "out.gguf"), str(rows), str(columns), str(tensors)]
    done = subprocess.run([sys.executable, "-c", LARGE, *arguments], capture_output=True, text=True, check=True)
    assert rows * columns < int(done.stdout) < 4 * rows * columns
    (tmp_path / "out.gguf").unlink()


def test_notes_are_json_in_a_string_each(file, tmp_path):
    merge_file(file, tmp_path / "out.gguf", random_codes(["Q4_K"]), NOTE)
    (line,) = GGUFFile(tmp_path / "out.gguf").metadata["sqft.merges"]
    assert json.loads(line)["ranks"] == {"Q4_K": 8}
