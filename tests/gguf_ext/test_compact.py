"""A compact file is smaller, is read as the stock file, runs in llama.cpp, and becomes the stock file again.

pytest tests/gguf_ext/test_compact.py
"""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from helpers_backend import codes_of, q4_0, run, run_script, write_llama

from gguf_ext import GGUFError, export_gguf
from gguf_ext.backend.load import BUILD, FILE
from gguf_ext.compact import compact_gguf, expand_gguf
from gguf_ext.errors import DamagedFileError
from gguf_ext.packed import pack_blocks, unpack_blocks
from gguf_ext.patch import export_patch
from gguf_ext.reader import GGUFFile
from gguf_ext.stock import StockFile, is_compact
from sqft_plugins.cli import main

LIBRARY = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE.name} was not built: {BUILD}")


@pytest.fixture(scope="module")
def files(int4, tmp_path_factory):
    """An export of ours and its compact form."""
    root = tmp_path_factory.mktemp("compact")
    export_gguf(int4, root / "stock.gguf")
    compact_gguf(root / "stock.gguf", root / "compact.gguf")
    return root / "stock.gguf", root / "compact.gguf"


@pytest.mark.parametrize(("group", "goal"), [(32, 0.79), (128, 0.70)])
def test_half_the_weights_take_what_was_promised(group, goal):
    rng = np.random.default_rng(0)
    scales = (0.01 * (1 + rng.random((512, 4096 // group)))).astype(np.float16)
    blocks = q4_0(codes_of(rng, 512, 4096, 0.5), scales)
    packed = pack_blocks(blocks)
    assert len(packed) / blocks.nbytes <= goal
    assert np.array_equal(unpack_blocks(np.frombuffer(packed, np.uint8), ""), blocks)


def test_blocks_of_any_bits_come_back():
    rng = np.random.default_rng(1)
    for out, columns in ((1, 32), (17, 96), (40, 320)):
        blocks = rng.integers(0, 256, (out, columns // 32 * 18), np.uint8)  # scales that are NaN, too
        blocks[-1:, 2:18] = 0x88  # a block without a kept weight
        assert np.array_equal(unpack_blocks(np.frombuffer(pack_blocks(blocks), np.uint8), ""), blocks)


def test_the_stock_file_comes_back_bit_for_bit(files, tmp_path):
    stock, compact = files
    assert is_compact(compact)
    assert not is_compact(stock)
    assert compact.stat().st_size < stock.stat().st_size
    report = expand_gguf(compact, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == stock.read_bytes()
    assert (report.bytes, report.before) == (stock.stat().st_size, compact.stat().st_size)


def test_it_is_read_as_the_stock_file(files):
    stock, compact = map(GGUFFile, files)
    assert compact.metadata == stock.metadata
    assert compact.kinds == stock.kinds
    assert [(info.name, info.type, info.shape) for info in compact.tensors.values()] == [
        (info.name, info.type, info.shape) for info in stock.tensors.values()
    ]
    assert any(info.packed for info in compact.tensors.values())
    for name in stock.tensors:
        assert np.array_equal(compact.raw(name), stock.raw(name)), name
    view, whole = StockFile(files[1]), files[0].read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, len(view.header) - 1, len(whole) - 1, len(whole), *rng.integers(0, len(whole), 50)]:
        assert view.read(int(at), 3000) == whole[at : at + 3000]


def test_verify_and_inspect_read_it(files, int4, capsys):
    found = []
    for path in files:
        for command in (["verify", str(int4), str(path)], ["inspect", str(path)]):
            with pytest.raises(SystemExit) as ended:
                main([*command, "--json"])
            assert not ended.value.code
            found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[2]
    assert found[0]["ok"]
    for each in (found[1], found[3]):
        each.pop("path"), each.pop("bytes")
    assert found[1] == found[3]


def test_the_command_goes_from_a_folder_to_the_stock_file(files, int4, tmp_path, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["export", "gguf", *map(str, arguments)])
        return ended.value.code, capsys.readouterr()

    made, back = tmp_path / "made.gguf", tmp_path / "back.gguf"
    assert not call(int4, "--compact", "--out", made)[0]
    assert not call(made, "--expand", "--out", back)[0]
    assert back.read_bytes() == files[0].read_bytes()
    for wrong, why in (
        ((back, "--out", tmp_path / "x.gguf"), "is a GGUF file already"),
        ((int4, "--expand", "--out", tmp_path / "x.gguf"), "is a folder"),
        ((back, "--compact", "--float-type", "f32", "--out", tmp_path / "x.gguf"), "leave it out"),
        ((back, "--compact", "--expand", "--out", tmp_path / "x.gguf"), "each other's inverse"),
    ):
        code, shown = call(*wrong)
        assert code
        assert why in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.gguf", "made.gguf"]


LOADED = """
import gguf_ext
backend.enable(density=1.0)
rows, held = [], []
for path in sys.argv[1:3]:
    for sparse in (True, False):
        llm = gguf_ext.load(path, n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, sparse=sparse)
        llm.eval([5, 9, 21, 33])
        rows.append(llm.scores[:4].copy())
        held.append(backend.held()["tensors"])
        llm.close()
print(json.dumps([held, bool(np.array_equal(rows[0], rows[2])), bool(np.array_equal(rows[1], rows[3]))]))
"""


@LIBRARY
def test_it_runs_as_the_stock_file_does_with_and_without_the_sparse_kernels(files):
    pytest.importorskip("llama_cpp")
    held, sparse, dense = run(LOADED, *files)
    assert held[0] > 0
    assert held == [held[0], 0, held[0], 0]
    assert sparse
    assert dense


def test_llama_cpp_by_itself_refuses_it_in_a_line(files):
    pytest.importorskip("llama_cpp")
    done = run_script(
        "import sys, llama_cpp as c\nprint(c.llama_model_load_from_file(sys.argv[1].encode(), "
        "c.llama_model_default_params()))",
        files[1],
    )
    assert done.stdout.strip() == "None"
    assert "unknown model architecture: 'sqft-compact'" in done.stderr


def test_what_cannot_be_made_compact_is_refused(files, tmp_path):
    stock, compact = files
    write_llama(tmp_path / "full.gguf", density=1.0)
    for source, why in ((compact, "is compact already"), (tmp_path / "full.gguf", "no tensor gets smaller")):
        with pytest.raises(GGUFError, match=why):
            compact_gguf(source, tmp_path / "out.gguf")
    with pytest.raises(GGUFError, match="is not compact"):
        expand_gguf(stock, tmp_path / "out.gguf")
    with pytest.raises(GGUFError, match="is compact: write the stock file first"):
        export_patch(compact, stock, tmp_path / "out.patch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.gguf"]


def test_a_damaged_one_is_one_line(files, tmp_path):
    data = files[1].read_bytes()
    info = max((info for info in GGUFFile(files[1]).tensors.values() if info.packed), key=lambda info: info.packed)
    head = info.offset
    for at, value in (
        (head, b"X"),
        (head + 16, struct.pack("<q", 1 << 40)),
        (head + 64, b"\x5a" * 64),
    ):
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(data[:at] + value + data[at + len(value) :])
        with pytest.raises(DamagedFileError):
            expand_gguf(bad, tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()
