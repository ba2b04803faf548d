"""A corrupt GGUF file given to `inspect`, `verify`, `--template-gguf` and the reader of parts is an error in bounded
time and memory, never a crash."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gguf_ext import GGUFError, GGUFFile, export_gguf, verify_gguf
from gguf_ext.errors import DamagedFileError
from gguf_ext.inspector import inspect_gguf
from sqft_plugins.cli.inspect import _show_model

pytestmark = pytest.mark.once  # the reader is ours, and reads bytes
SECONDS = 5
MEGABYTES = 60
"""At most, for files of 0.1 MB: float32 copies of what lies in them, and a vocabulary."""
CHECKED = settings(
    max_examples=25, deadline=SECONDS * 1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def small(byte_level, make, tmp_path_factory):
    """(model folder, the same under a class without a table, the file, the file in parts): small, so that damage hits
    the header as often as the weights."""
    place = tmp_path_factory.mktemp("fuzz")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    make["llama"](byte_level, place / "float", **sizes)
    make["int4"](place / "float", place / "model")
    other = place / "other"
    shutil.copytree(place / "model", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["OtherForCausalLM"]}))
    export_gguf(place / "model", place / "m.gguf")
    parts = export_gguf(place / "model", place / "parts.gguf", split_max_size=50_000).parts
    assert len(parts) > 1
    return place / "model", other, place / "m.gguf", parts


NUMBERS = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1])
BYTES = st.one_of(st.binary(min_size=1, max_size=9), NUMBERS.map(lambda number: struct.pack("<Q", number)))
PATCHES = st.lists(st.tuples(st.floats(0, 1), BYTES), min_size=1, max_size=4)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))
HEADS = st.booleans()
"""Whether to damage the header, half of which is the vocabulary, or any byte."""


def _damaged(data: bytes, patches, cut: float, head: bool) -> bytes:
    changed, size = bytearray(data), 2000 if head else len(data)
    for at, value in patches:
        start = int(at * max(size - len(value), 0))
        changed[start : start + len(value)] = value
    return bytes(changed[: int(cut * len(data))])


def _table(data: bytes) -> int:
    """Where the table of tensors begins."""
    return data.index(b"token_embd.weight") - 8


def assert_bounded(call) -> None:
    """Runs it: it returns, or raises a GGUFError, within the memory that is allowed."""
    tracemalloc.start()
    try:
        with contextlib.suppress(GGUFError):
            call()
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 1e6
    finally:
        tracemalloc.stop()


def _inspected(path) -> None:
    report = inspect_gguf(path)
    json.dumps(report)
    with contextlib.redirect_stdout(None):
        _show_model(report)


def assert_all_bounded(small, path) -> None:
    model, other, _, _ = small
    assert_bounded(lambda: _inspected(path))
    assert_bounded(lambda: verify_gguf(model, path).as_dict())
    assert_bounded(lambda: verify_gguf(other, path))  # the file is its own template there


@CHECKED
@given(patches=PATCHES, cut=CUT, head=HEADS)
@example(patches=[(0.0, b"GGML")], cut=1.0, head=True)
@example(patches=[(0.0, b"GGUF")], cut=0.0, head=True)
def test_inspect_and_verify(small, tmp_path, patches, cut, head):
    (tmp_path / "d.gguf").write_bytes(_damaged(small[2].read_bytes(), patches, cut, head))
    assert_all_bounded(small, tmp_path / "d.gguf")


@CHECKED
@given(at=st.integers(0, 900), value=st.one_of(NUMBERS, st.integers(0, 300)), width=st.sampled_from("BIQ"))
def test_the_table_of_tensors(small, tmp_path, at, value, width):
    """Names, dimensions, types and offsets, where a wrong number does most harm."""
    data = bytearray(small[2].read_bytes())
    struct.pack_into(f"<{width}", data, _table(data) + at, value % 2 ** (8 * struct.calcsize(width)))
    (tmp_path / "d.gguf").write_bytes(data)
    assert_all_bounded(small, tmp_path / "d.gguf")


@settings(CHECKED, max_examples=12)
@given(patches=PATCHES, cut=CUT, head=HEADS)
def test_a_template(small, tmp_path, patches, cut, head):
    model, other, file, _ = small
    (tmp_path / "t.gguf").write_bytes(_damaged(file.read_bytes(), patches, cut, head))
    for folder in (model, other):
        out = tmp_path / "out.gguf"
        assert_bounded(lambda folder=folder, out=out: export_gguf(folder, out, template_gguf=tmp_path / "t.gguf"))
        out.unlink(missing_ok=True)
        assert [path.name for path in tmp_path.iterdir()] == ["t.gguf"]


@CHECKED
@given(patches=PATCHES, cut=CUT, head=HEADS, which=st.integers(0, 9))
def test_parts(small, tmp_path, patches, cut, head, which):
    names = []
    for index, part in enumerate(small[3]):
        data = open(part, "rb").read()  # noqa: SIM115
        names.append(tmp_path / part.rpartition("/")[2])
        names[-1].write_bytes(_damaged(data, patches, cut, head) if index == which % len(small[3]) else data)
    assert_all_bounded(small, names[0])


# --- single faults, named ---


def _with(small, tmp_path, change):
    data = bytearray(small[2].read_bytes())
    change(data)
    (tmp_path / "d.gguf").write_bytes(data)
    return tmp_path / "d.gguf"


def test_tensors_that_lie_on_each_other_are_damage(small, tmp_path):
    """Else a small file of many tensors, each of them the whole file, would take hours."""
    info = GGUFFile(small[2]).tensors["blk.0.attn_q.weight"]

    def change(data):
        at = data.index(b"blk.0.attn_q.weight") + len(info.name) + 4 + 8 * len(info.shape) + 4
        struct.pack_into("<Q", data, at, 0)

    with pytest.raises(DamagedFileError, match="lies outside the file or on the next one"):
        GGUFFile(_with(small, tmp_path, change))


def test_a_count_of_parts_that_nobody_has_is_an_error(small, tmp_path):
    names = [tmp_path / part.rpartition("/")[2] for part in small[3]]
    for part, name in zip(small[3], names, strict=True):
        shutil.copy(part, name)
    data = bytearray(names[0].read_bytes())
    struct.pack_into("<H", data, data.index(b"split.count") + len("split.count") + 4, 65535)
    names[0].write_bytes(data)
    with pytest.raises(GGUFError, match="is part 1 of 65535 but not called so"):
        GGUFFile(names[0])


@pytest.mark.parametrize("name", [b"token\nembd.weight", b"token\x00embd.weigh\x00"])
def test_a_name_that_no_line_can_show_is_refused(small, tmp_path, name):
    data = small[2].read_bytes().replace(b"token_embd.weight", name)
    (tmp_path / "d.gguf").write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"a tensor called 'token\\\\?\w+embd"):
        GGUFFile(tmp_path / "d.gguf")
