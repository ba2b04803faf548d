"""One matrix in llama.cpp's Q4_0, by `ggml_mul_mat` of the library that llama-cpp-python brings, through ctypes.

The weight goes where llama.cpp itself would put it: into the first of the CPU's extra buffer types that takes it, which
interleaves its rows for this processor ("CPU_REPACK"), else into plain memory.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

F32, Q4_0 = 0, 2
"""ggml_type."""
BLOCK = 32


class Parameters(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTERS = """ggml_init ggml_new_tensor_2d ggml_mul_mat ggml_new_graph ggml_get_data ggml_backend_cpu_init
ggml_backend_cpu_reg ggml_backend_cpu_buffer_type ggml_backend_reg_get_proc_address ggml_backend_reg_dev_get
ggml_backend_alloc_ctx_tensors_from_buft"""
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ggml_init": (Parameters,),
    "ggml_new_tensor_2d": (ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    "ggml_mul_mat": (ctypes.c_void_p,) * 3,
    "ggml_new_graph": (ctypes.c_void_p,),
    "ggml_get_data": (ctypes.c_void_p,),
    "ggml_build_forward_expand": (ctypes.c_void_p,) * 2,
    "ggml_backend_cpu_set_n_threads": (ctypes.c_void_p, ctypes.c_int),
    "ggml_backend_tensor_set": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
    "ggml_backend_graph_compute": (ctypes.c_void_p,) * 2,
    "ggml_backend_alloc_ctx_tensors_from_buft": (ctypes.c_void_p,) * 2,
    "ggml_backend_buft_name": (ctypes.c_void_p,),
    "ggml_backend_reg_dev_get": (ctypes.c_void_p, ctypes.c_size_t),
    "ggml_backend_reg_get_proc_address": (ctypes.c_void_p, ctypes.c_char_p),
}


class Ggml:
    """The functions that are called, of both libraries of ggml. Raises ImportError without llama-cpp-python."""

    def __init__(self, threads: int):
        import llama_cpp

        folder = Path(str(llama_cpp.__file__)).parent / "lib"
        self._libraries = [ctypes.CDLL(str(next(folder.glob(f"libggml-{part}.*")))) for part in ("base", "cpu")]
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self._libraries[0].ggml_log_set(self._quiet, None)  # a line for each weight that is repacked
        self.backend = self.call("ggml_backend_cpu_init")
        self.call("ggml_backend_cpu_set_n_threads", self.backend, threads)
        self.plain = self.call("ggml_backend_cpu_buffer_type")

    def call(self, name: str, *arguments: Any) -> Any:
        library = next(library for library in self._libraries if hasattr(library, name))
        function = library[name]
        function.argtypes = _ARGUMENTS.get(name, ())
        if name in _POINTERS.split():
            function.restype = ctypes.c_void_p
        return function(*arguments)

    def context(self) -> int:
        """A place for tensors and a graph; their data lie elsewhere."""
        return int(self.call("ggml_init", Parameters(4 << 20, None, True)))

    def extra_types(self) -> list[int]:
        """The buffer types that llama.cpp tries first."""
        registry = self.call("ggml_backend_cpu_reg")
        address = self.call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        found, types = get(self.call("ggml_backend_reg_dev_get", registry, 0)), []
        while found and found[len(types)]:
            types.append(int(found[len(types)]))
        return types

    def name_of(self, buffer_type: int) -> str:
        library = self._libraries[0]
        library.ggml_backend_buft_name.restype = ctypes.c_char_p
        library.ggml_backend_buft_name.argtypes = (ctypes.c_void_p,)
        return bytes(library.ggml_backend_buft_name(buffer_type)).decode()

    def repacking(self) -> int:
        """The type that repacks Q4_0, or plain memory. AMX's, which may stand before it, takes other shapes."""
        return next((kind for kind in self.extra_types() if "REPACK" in self.name_of(kind)), self.plain)


def blocks_of(codes: Tensor, scale: Tensor) -> Tensor:
    """codes uint8 [out, in], scale [out, groups], exact in fp16 → uint8 [out, in / 32, 18], as block_q4_0 is."""
    groups = codes.unflatten(1, (-1, BLOCK))
    wide = scale.half().repeat_interleave(groups.shape[1] // scale.shape[1], 1)
    low, high = groups[..., : BLOCK // 2], groups[..., BLOCK // 2 :]
    return torch.cat([wide.contiguous().view(torch.uint8).unflatten(1, (-1, 2)), low | high << 4], dim=2).contiguous()


class Matrix:
    """A weight [out, in] from its blocks, for any number of tokens."""

    def __init__(self, ggml: Ggml, blocks: Tensor):
        self.ggml, self.shape = ggml, (blocks.shape[0], blocks.shape[1] * BLOCK)
        out, width = self.shape
        context = ggml.context()
        self.weight = ggml.call("ggml_new_tensor_2d", context, Q4_0, width, out)
        self.kind = ggml.repacking()
        if not ggml.call("ggml_backend_alloc_ctx_tensors_from_buft", context, self.kind):
            raise MemoryError("ggml gives no memory for the weight")
        ggml.call("ggml_backend_tensor_set", self.weight, blocks.data_ptr(), 0, blocks.numel())
        self._graphs: dict[int, tuple[Any, ...]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, in] → float32 [tokens, out], which the next call overwrites."""
        graph, place, y = self._graphs.get(len(x)) or self._graph(len(x))
        place.copy_(x)
        if self.ggml.call("ggml_backend_graph_compute", self.ggml.backend, graph):
            raise RuntimeError("ggml refused the graph")
        return y

    def _graph(self, tokens: int) -> tuple[Any, ...]:
        ggml, (out, width) = self.ggml, self.shape
        context = ggml.context()
        x = ggml.call("ggml_new_tensor_2d", context, F32, width, tokens)
        y = ggml.call("ggml_mul_mat", context, self.weight, x)
        graph = ggml.call("ggml_new_graph", context)
        ggml.call("ggml_build_forward_expand", graph, y)
        if not ggml.call("ggml_backend_alloc_ctx_tensors_from_buft", context, ggml.plain):
            raise MemoryError("ggml gives no memory for the activations")
        self._graphs[tokens] = (graph, self._view(x, tokens, width), self._view(y, tokens, out))
        return self._graphs[tokens]

    def _view(self, tensor: int, *shape: int) -> Tensor:
        """The floats of a tensor of ggml, not copied."""
        count = shape[0] * shape[1]
        data = (ctypes.c_float * count).from_address(self.ggml.call("ggml_get_data", tensor))
        return torch.frombuffer(data, dtype=torch.float32).view(shape)
