"""The packed form: what it is, that nothing is lost, and that what is damaged is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from helpers_kernels import make_case

from sqft_plugins.errors import GridError, KernelError
from sqft_plugins.grid import int4_weight, round_to_nearest
from sqft_plugins.kernels import SparseInt4Weight, layout
from sqft_plugins.kernels.library import Library, library


@pytest.fixture(params=["compiled", "torch"])
def packer(request, monkeypatch):
    """Both ways of packing."""
    if request.param == "torch":
        monkeypatch.setattr(layout, "library", lambda: Library(None, "for the test"))
    elif library().handle is None:
        pytest.skip(library().why)


def naive_pack(codes, mask):
    """masks, values and block offsets, by the words at the top of layout.py."""
    out, in_features = codes.shape
    masks, values, offsets = [], [], [0]
    for block in range(-(-out // 16)):
        streams = [], []
        for chunk in range(2 * -(-in_features // 8)):
            bits = 0
            for position in range(64):
                row, column = 16 * block + position // 4, 4 * chunk + position % 4
                if row < out and column < in_features and mask[row, column]:
                    bits |= 1 << position
                    streams[chunk % 2].append(int(codes[row, column]))
            masks.append(bits - (1 << 64) if bits >> 63 else bits)
        length = max(map(len, streams))
        low, high = (stream + [0] * (length - len(stream)) for stream in streams)
        values += [a | b << 4 for a, b in zip(low, high, strict=True)]
        offsets.append(len(values))
    return masks, values + [0] * 64, offsets


@pytest.mark.parametrize(("out", "in_features", "density"), [(1, 1, 1.0), (17, 9, 0.5), (32, 24, 0.9), (20, 40, 0.1)])
def test_packing_is_what_the_layout_says(packer, out, in_features, density):
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (out, in_features), dtype=torch.uint8)
    mask = torch.rand(out, in_features) < density
    masks, values, offsets = naive_pack(codes, mask)
    packed = layout.pack(codes, mask)
    assert packed.masks.flatten().tolist() == masks
    assert packed.values.tolist() == values
    assert packed.block_offsets.tolist() == offsets


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 70),
    groups=st.integers(1, 3),
    group_size=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_unpacking_undoes_packing_whatever_the_shape(out, groups, group_size, density, seed):
    case = make_case(out, groups * group_size, group_size, density, symmetric=seed % 2 == 0, seed=seed)
    back = case.packed.unpack()
    assert torch.equal(back.codes, case.codes)
    assert torch.equal(back.scale, case.scale)
    assert torch.equal(back.zero_point, case.zero_point)
    assert torch.equal(case.packed.mask(), case.mask)


def test_unpacking_in_torch_undoes_packing_across_slabs(packer):
    torch.manual_seed(0)
    out = 16 * layout.SLAB + 5
    mask = torch.rand(out, 12) < 0.5
    codes = torch.where(mask, torch.randint(0, 16, mask.shape, dtype=torch.uint8), torch.tensor(8, dtype=torch.uint8))
    back, kept = layout.unpack(layout.pack(codes, mask), None, out, 12)
    assert torch.equal(back, codes)
    assert torch.equal(kept, mask)


def test_the_codes_of_grid_round_trip_and_take_the_bytes_that_are_promised():
    torch.manual_seed(0)
    weight = torch.randn(512, 1024)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask.scatter_(1, torch.rand(512, 1024).topk(512, dim=1).indices, True)
    quantized = round_to_nearest(weight, mask, group_size=128)
    packed = SparseInt4Weight.from_quantized(quantized, mask)
    assert torch.equal(packed.unpack().codes, quantized.codes)
    assert packed.density == 0.5
    assert "density=0.50, bits a weight=3.1" in repr(packed)
    assert (
        3.125 < packed.bits < 3.2
    )  # 1 for the mask, 2 for the codes, 16 / 128 for the scale; unequal streams add a little


def test_without_a_mask_only_the_nonzero_weights_are_stored():
    case = make_case(32, 64, 32, 0.5)
    fewest = SparseInt4Weight.from_codes(case.codes, case.scale)
    assert fewest.nbytes < case.packed.nbytes  # a sixteenth of the kept codes is 8, which is 0
    assert torch.equal(fewest.unpack().codes, case.codes)
    assert torch.equal(fewest.mask(), case.codes != 8)


def test_a_value_plane_shares_all_but_the_values():
    case = make_case(40, 64, 32, 0.5, symmetric=False)
    other = torch.where(case.mask, (case.codes + 3) % 16, case.codes)
    plane = case.packed.with_values(case.packed.plane(other))
    assert torch.equal(plane.unpack().codes, other)
    assert plane.masks is case.packed.masks
    assert plane.scales is case.packed.scales
    outside = torch.where(case.mask, case.codes, (case.codes + 1) % 16)
    with pytest.raises(KernelError, match="outside the mask"):
        case.packed.plane(outside)


def damaged(case, **parts):
    weight = case.packed
    given = {name: getattr(weight, name) for name in ("masks", "values", "block_offsets", "scales", "zero_points")}
    return SparseInt4Weight(weight.out_features, weight.in_features, **{**given, **parts})


def flipped(masks, block, chunk, bit):
    masks = masks.clone()
    masks[block, chunk] ^= 1 << bit if bit < 63 else -(1 << 63)
    return masks


def test_damaged_parts_are_refused():
    case = make_case(40, 100, 50, 0.5, symmetric=False)
    weight = case.packed
    offsets = weight.block_offsets
    refused = {
        "block_offsets are not those of the masks": [
            {"masks": flipped(weight.masks, 0, 0, 5)} | {"block_offsets": offsets + 1},
            {"block_offsets": offsets.flip(0)},
            {"block_offsets": offsets * 1000},
            {"block_offsets": offsets - 1},
            {"masks": torch.full_like(weight.masks, -1)},
        ],
        "values has": [{"values": weight.values[:-1].contiguous()}, {"values": torch.cat([weight.values] * 2)}],
        "values is": [{"values": weight.values.to(torch.int8)}, {"values": weight.values.repeat(2)[::2]}],
        "masks is": [{"masks": weight.masks[:2]}, {"masks": weight.masks.to(torch.int32)}],
        "scales is": [{"scales": weight.scales.float()}, {"scales": weight.scales[:, :0]}],
        "zero_points is": [{"zero_points": weight.zero_points[:2]}, {"zero_points": weight.zero_points.char()}],
    }
    for message, cases in refused.items():
        for parts in cases:
            with pytest.raises(KernelError, match=message):
                damaged(case, **parts)
    with pytest.raises(GridError, match="zero_point=16"):
        damaged(case, zero_points=torch.full_like(weight.zero_points, 16))
    with pytest.raises(GridError, match="NaN"):
        damaged(case, scales=torch.full_like(weight.scales, float("nan")))


@pytest.mark.parametrize(
    ("block", "chunk", "bit", "what"), [(2, 0, 40, "rows above out=40"), (0, 25, 0, "inputs above")]
)
def test_a_mask_that_keeps_padding_is_refused(block, chunk, bit, what):
    case = make_case(40, 100, 100, 0.0)  # nothing is kept, so one code more is the only one
    masks = flipped(case.packed.masks, block, chunk, bit)
    offsets = layout.offsets_of(masks)
    values = torch.zeros(int(offsets[-1]) + layout.END, dtype=torch.uint8)
    with pytest.raises(KernelError, match=what):
        damaged(case, masks=masks, block_offsets=offsets, values=values)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_of_a_mask_is_refused_or_changes_no_length(data):
    case = make_case(33, 44, 44, 0.5, seed=1)
    block, chunk = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 11))
    masks = flipped(case.packed.masks, block, chunk, data.draw(st.integers(0, 63)))
    try:
        weight = damaged(case, masks=masks)
    except KernelError:
        return
    # the shorter stream may have got one more, or one less: then all lengths still fit and the kernel stays inside
    assert torch.equal(layout.offsets_of(weight.masks), case.packed.block_offsets)


def test_what_is_off_the_grid_is_refused():
    codes, scale = torch.full((16, 32), 8, dtype=torch.uint8), torch.ones(16, 1)
    mask = torch.ones(16, 32, dtype=torch.bool)
    with pytest.raises(GridError, match="code=16"):
        SparseInt4Weight.from_codes(torch.full_like(codes, 16), scale)
    with pytest.raises(GridError, match="not exact in float16"):
        SparseInt4Weight.from_codes(codes, scale * 1.0001)
    with pytest.raises(GridError, match="not finite"):
        SparseInt4Weight.from_codes(codes, scale * float("inf"))
    with pytest.raises(GridError, match="5 groups do not divide"):
        SparseInt4Weight.from_codes(codes, scale.expand(16, 5))
    with pytest.raises(GridError, match="group_size=16"):
        SparseInt4Weight.from_codes(codes, scale, group_size=16)
    with pytest.raises(KernelError, match="mask drops 512 weights"):
        SparseInt4Weight.from_codes(codes + 1, scale, mask=~mask)
    with pytest.raises(KernelError, match="mask is not bool"):
        SparseInt4Weight.from_codes(codes, scale, mask=mask.int())
    with pytest.raises(KernelError, match="zero_point is not uint8"):
        SparseInt4Weight.from_codes(codes, scale, zero_point=scale)
    with pytest.raises(KernelError, match="do not fit"):
        SparseInt4Weight.from_quantized(int4_weight(codes[0], scale, scale.byte()))
    with pytest.raises(KernelError, match="give uint8"):
        layout.pack(codes.int(), mask)
