"""Our reader agrees with the gguf package's, and takes a damaged file for an error, never for a crash."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_ext import GGUFError, GGUFFile, export_gguf
from gguf_ext.errors import DamagedFileError


@pytest.fixture(scope="module")
def file(llama_int4, tmp_path_factory):
    target = tmp_path_factory.mktemp("reader") / "m.gguf"
    export_gguf(llama_int4, target)
    return target


def test_it_reads_what_the_package_reads(file):
    ours, theirs = GGUFFile(file), GGUFReader(file)
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours.metadata) == names
    for name in names:
        assert ours.metadata[name] == theirs.fields[name].contents()
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(ours.raw(tensor.name).reshape(-1), tensor.data.view(np.uint8).reshape(-1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "too few"),
        (lambda data: b"GGML" + data[4:], "does not begin with GGUF"),
        (lambda data: data[:4] + b"\x09" + data[5:], "GGUF version 9"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "tensors"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "metadata entries"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "bytes wanted"),
        (lambda data: data[: len(data) // 2], "outside the file"),
        (lambda data: data[:2000], "damaged"),
    ],
)
def test_damage_is_named(file, tmp_path, change, words):
    (tmp_path / "d.gguf").write_bytes(change(file.read_bytes()))
    with pytest.raises(DamagedFileError, match=words):
        GGUFFile(tmp_path / "d.gguf")


def test_the_package_takes_damage_for_a_file(file, tmp_path):
    """Why the reader is ours: GGUFReader finds more values than the file has bytes, and tensors on one another."""
    writer = GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_key_value("x", [1], GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = (tmp_path / "long.gguf").read_bytes()[:-9] + (9999).to_bytes(8, "little") + b"\x01"
    (tmp_path / "long.gguf").write_bytes(data)
    assert len(GGUFReader(tmp_path / "long.gguf").fields["x"].data) == 9999 > len(data)
    with pytest.raises(DamagedFileError, match="9999 bytes wanted"):
        GGUFFile(tmp_path / "long.gguf")

    first, second = GGUFReader(file).tensors[:2]
    at = second.field.offset + sum(part.nbytes for part in second.field.parts[:-1])
    data = bytearray(file.read_bytes())
    data[at : at + 8] = bytes(first.field.parts[-1])
    (tmp_path / "twice.gguf").write_bytes(data)
    assert GGUFReader(tmp_path / "twice.gguf").tensors[1].data_offset == first.data_offset
    with pytest.raises(DamagedFileError, match="or on the next one"):
        GGUFFile(tmp_path / "twice.gguf")


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 12000), value=st.binary(min_size=1, max_size=9), cut=st.integers(0, 400000))
def test_any_damage_is_an_error_or_a_file(file, tmp_path, at, value, cut):
    data = bytearray(file.read_bytes())
    data[at : at + len(value)] = value
    (tmp_path / "d.gguf").write_bytes(data[: max(cut, 24)])
    with contextlib.suppress(GGUFError):
        read = GGUFFile(tmp_path / "d.gguf")
        for name in read.tensors:
            read.dequantize(name)
