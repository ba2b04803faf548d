"""torch operators on the packed form of layout.py, in the namespace `sqft`.

    sparse_int4_linear         one weight
    sparse_int4_linear.planes  another value plane for each group of tokens
    sparse_int4_pack, sparse_int4_unpack

They work under torch.compile and have no gradient. On a CPU the compiled library registers the first two itself, which
spares Python at every call (library.py says why not, where it does not; then reference.py serves). On a GPU it is the
Triton kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.errors import KernelError
from sqft_plugins.kernels import layout, reference
from sqft_plugins.kernels.layout import Packed
from sqft_plugins.kernels.library import library
from sqft_plugins.progress import say
from sqft_plugins.variables import KERNEL

_WEIGHT = "Tensor block_offsets, Tensor scales, Tensor? zero_points, Tensor? bias, int out_features"
_DEFINITIONS = (
    f"sparse_int4_linear(Tensor x, Tensor masks, Tensor values, {_WEIGHT}, int activation_bits=16) -> Tensor",
    f"sparse_int4_linear.planes(Tensor x, Tensor masks, Tensor[] values, int[] tokens, {_WEIGHT}, "
    "int activation_bits=16) -> Tensor",
    "sparse_int4_pack(Tensor codes, Tensor mask) -> (Tensor masks, Tensor values, Tensor block_offsets)",
    "sparse_int4_unpack(Tensor masks, Tensor values, Tensor block_offsets, Tensor? zero_points, int out_features, "
    "int in_features) -> (Tensor codes, Tensor mask)",
)
ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)


def check_call(
    x: Tensor, packed: Packed, scales: Tensor, zero_points: Tensor | None, bias: Tensor | None, out: int, bits: int
) -> None:
    """What every call is checked for, whatever the back end; csrc/binding.cpp checks the same. Raises KernelError.

    That masks and values fit each other is not looked at here, it would take as long as the product: `SparseInt4Weight`
    checks it once, when it is made.
    """
    if x.dtype not in ACTIVATIONS or x.dim() == 0 or x.shape[-1] < 1:
        raise KernelError(f"x is {x.dtype} {tuple(x.shape)}: give float32, bfloat16 or float16 [..., in]")
    if bits not in (8, 16):
        raise KernelError(f"activation_bits={bits}: give 16 or 8")

    masks, values, block_offsets = packed
    blocks, in_features = layout.blocks_of(out), x.shape[-1]
    groups = scales.shape[1] if scales.dim() == 3 else 0
    wanted = (
        ("masks", masks, torch.int64, (blocks, layout.chunks_of(in_features))),
        ("values", values, torch.uint8, tuple(values.shape[:1])),
        ("block_offsets", block_offsets, torch.int64, (blocks + 1,)),
        ("scales", scales, torch.float16, (blocks, groups, layout.ROWS)),
        ("zero_points", zero_points, torch.uint8, (blocks, groups, layout.ROWS)),
        ("bias", bias, x.dtype, (out,)),
    )
    for name, part, dtype, shape in wanted:
        layout.expect(name, part, dtype, shape, f" for x [..., {in_features}] and out={out}")
        if part is not None and part.device != x.device:
            raise KernelError(f"{name} is on {part.device} and x on {x.device}: move the weight")
    if out < 1 or not groups or in_features % groups:
        raise KernelError(f"out={out} and {groups} groups do not fit x [..., {in_features}]")
    on_cpu = x.device.type == "cpu"  # on a GPU every look at the offsets would wait for it
    if on_cpu and int(block_offsets[-1]) != values.numel() - layout.END:
        raise KernelError(f"block_offsets do not end with the {values.numel()} bytes of values: pack the weight again")
    if on_cpu and (int(block_offsets[0]) < 0 or bool((block_offsets.diff() < 0).any())):
        raise KernelError("block_offsets fall, or begin below 0: pack the weight again")


def _checked(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`sqft::sparse_int4_linear` by `linear(x, packed, scales, zero_points, bias, out)`, which is given what fits."""

    def operator(
        x: Tensor,
        masks: Tensor,
        values: Tensor,
        block_offsets: Tensor,
        scales: Tensor,
        zero_points: Tensor | None,
        bias: Tensor | None,
        out_features: int,
        activation_bits: int = 16,
    ) -> Tensor:
        packed = Packed(masks, values, block_offsets)
        check_call(x, packed, scales, zero_points, bias, out_features, activation_bits)
        return linear(x, packed, scales, zero_points, bias, out_features)

    return operator


def _triton_linear(*arguments: Any) -> Tensor:
    from sqft_plugins.kernels import triton  # where there is no GPU, Triton need not be there

    return triton.linear(*arguments)


linear_in_torch = _checked(reference.linear)
_linear_gpu = _checked(_triton_linear)


def _planes(
    x: Tensor,
    masks: Tensor,
    values: list[Tensor],
    tokens: list[int],
    block_offsets: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    activation_bits: int = 16,
) -> Tensor:
    if x.dim() != 2 or len(values) != len(tokens) or min(tokens, default=0) < 0 or sum(tokens) != x.shape[0]:
        raise KernelError(
            f"tokens={tokens} of {len(values)} planes do not split x {tuple(x.shape)}: give x [tokens, in] and one "
            "number a plane"
        )
    parts = [
        sparse_int4_linear(rows, masks, plane, block_offsets, scales, zero_points, bias, out_features, activation_bits)
        for rows, plane in zip(x.split(tokens), values, strict=True)
    ]
    return torch.cat(parts) if parts else x.new_empty(0, out_features)


def _pack(codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    masks, values, block_offsets = (part.to(codes.device) for part in layout.pack(codes, mask))
    return masks, values, block_offsets


def _unpack(
    masks: Tensor,
    values: Tensor,
    block_offsets: Tensor,
    zero_points: Tensor | None,
    out_features: int,
    in_features: int,
) -> tuple[Tensor, Tensor]:
    packed = Packed(masks, values, block_offsets)
    layout.check(packed, out_features, in_features)
    if zero_points is not None:
        layout.check_groups(zero_points.half(), zero_points, out_features, in_features)
    codes, mask = layout.unpack(packed, zero_points, out_features, in_features)
    return codes.to(masks.device), mask.to(masks.device)


def _register() -> torch.library.Library:
    operators = torch.library.Library("sqft", "FRAGMENT")
    for definition in _DEFINITIONS:
        operators.define(definition, tags=(torch.Tag.pt2_compliant_tag,))
    if library().handle is None:
        if KERNEL not in os.environ:
            say(f"sparse INT4 kernels: {library().why}")
        operators.impl("sparse_int4_linear", linear_in_torch, "CPU")
        operators.impl("sparse_int4_linear.planes", _planes, "CPU")
    operators.impl("sparse_int4_linear", _linear_gpu, "CUDA")
    operators.impl("sparse_int4_linear.planes", _planes, "CUDA")
    operators.impl("sparse_int4_pack", _pack, "CompositeExplicitAutograd")
    operators.impl("sparse_int4_unpack", _unpack, "CompositeExplicitAutograd")
    return operators


_OPERATORS = _register()  # torch forgets operators whose library object is gone


# --- shapes and dtypes of the results, for torch.compile ---


def _linear_shape(
    x: Tensor, masks: Tensor, values: Tensor, block_offsets: Tensor, scales: Tensor, zero_points: Tensor | None,
    bias: Tensor | None, out_features: int, activation_bits: int = 16,
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], out_features)


def _planes_shape(
    x: Tensor, masks: Tensor, values: list[Tensor], tokens: list[int], block_offsets: Tensor, scales: Tensor,
    zero_points: Tensor | None, bias: Tensor | None, out_features: int, activation_bits: int = 16,
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], out_features)


def _pack_shapes(codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blocks, chunks = layout.blocks_of(mask.shape[0]), layout.chunks_of(mask.shape[1])
    masks = mask.new_empty(blocks, chunks, dtype=torch.int64)
    size = torch.library.get_ctx().new_dynamic_size(min=layout.END)
    return masks, codes.new_empty(size), masks.new_empty(blocks + 1)


def _unpack_shapes(
    masks: Tensor, values: Tensor, block_offsets: Tensor, zero_points: Tensor | None, out_features: int,
    in_features: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    codes = values.new_empty(out_features, in_features)
    return codes, codes.new_empty(codes.shape, dtype=torch.bool)


torch.library.register_fake("sqft::sparse_int4_linear", _linear_shape)
torch.library.register_fake("sqft::sparse_int4_linear.planes", _planes_shape)
torch.library.register_fake("sqft::sparse_int4_pack", _pack_shapes)
torch.library.register_fake("sqft::sparse_int4_unpack", _unpack_shapes)

sparse_int4_linear = torch.ops.sqft.sparse_int4_linear.default
sparse_int4_linear_planes = torch.ops.sqft.sparse_int4_linear.planes
