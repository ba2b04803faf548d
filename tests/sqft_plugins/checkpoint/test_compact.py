"""The bytes of the compact form."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.checkpoint.compact import compact_pack, compact_unpack, pack_nibbles, unpack_nibbles


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(5, 24), (7, 13), (1, 8)])
def test_the_bytes_are_those_of_the_definition(shape, density):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    mask = torch.rand(shape, generator=generator) < density
    bitmask, values, offsets = compact_pack(codes, mask)
    bytes_, starts, bits = [], [0], []
    for row in range(shape[0]):
        kept = [int(codes[row, column]) for column in range(shape[1]) if mask[row, column]]
        for first in range(0, len(kept), 2):
            bytes_.append(kept[first] | (kept[first + 1] << 4 if first + 1 < len(kept) else 0))
        starts.append(len(bytes_))
        columns = [c for c in range(shape[1]) if mask[row, c]]
        bits.append([sum(1 << c % 8 for c in columns if c // 8 == byte) for byte in range(-(-shape[1] // 8))])
    assert values.tolist() == bytes_
    assert offsets.tolist() == starts
    assert bitmask.tolist() == bits
    zero_point = torch.randint(0, 16, (shape[0], 1), generator=generator, dtype=torch.uint8)
    again, again_mask = compact_unpack(bitmask, values, offsets, zero_point, shape[1])
    assert torch.equal(again_mask, mask)
    assert torch.equal(again, torch.where(mask, codes, zero_point))


def test_pruned_weights_get_the_zero_point_of_their_group():
    mask = torch.zeros(2, 8, dtype=torch.bool)
    zero_point = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    codes, _ = compact_unpack(*compact_pack(torch.zeros(2, 8, dtype=torch.uint8), mask), zero_point, 8)
    assert codes.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 4, 4, 4, 4]]


def test_nibbles_come_back():
    nibbles = torch.arange(32, dtype=torch.uint8).reshape(2, 16) % 16
    assert pack_nibbles(nibbles)[0, 0] == 0x10
    assert torch.equal(unpack_nibbles(pack_nibbles(nibbles)), nibbles)
