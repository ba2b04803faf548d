"""`python -m gguf_ext.blocks`: the proof as a command, and that it can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gguf_ext.blocks import TensorType
from gguf_ext.blocks.__main__ import main
from gguf_ext.blocks.codec import LAYOUTS
from gguf_ext.blocks.layout import Numbers
from gguf_ext.blocks.proof import SPECIAL, compare_with_ggml, random_blocks


def test_a_line_for_each_type(capsys):
    assert main(["--blocks", "300"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [kind.name for kind in LAYOUTS]
    assert all(" 300 blocks, " in line and ": 0 differ from ggml" in line for line in lines)
    assert last == "equal"


def test_one_type(capsys):
    assert main(["--type", "Q4_K", "--blocks", "10"]) == 0
    assert capsys.readouterr().out.startswith("Q4_K    10 blocks, 2560 weights")


def test_no_blocks_prove_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["--blocks", "0"])
    assert "--blocks 0 compares nothing" in capsys.readouterr().err


def test_a_wrong_scale_is_found(monkeypatch, capsys):
    """By the last bit of the scales of one block."""

    right = LAYOUTS[TensorType.Q4_K]

    def off(blocks: np.ndarray) -> Numbers:
        scale, offset = right.numbers(blocks)
        scale[500] = np.nextafter(scale[500], np.float32(np.inf))
        return Numbers(scale, offset)

    monkeypatch.setitem(LAYOUTS, TensorType.Q4_K, dataclasses.replace(right, numbers=off))
    (found,) = compare_with_ggml([TensorType.Q4_K], 2000)
    assert 0 < found.different <= 256
    assert not found.ok
    assert main(["--type", "Q4_K", "--blocks", "2000"]) == 1
    assert capsys.readouterr().out.endswith("different\n")


def test_special_scales_are_among_the_random_blocks():
    scales = random_blocks(TensorType.Q8_0, 4000, np.random.default_rng(0))[:, :2].copy().view("<u2")
    assert set(SPECIAL) <= set(scales[:, 0].tolist())
