"""What llama.cpp computes with the sparse kernels inside: the very weights of the file, results as near as its own.

pytest tests/gguf_ext/backend/test_exactness.py
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers_backend import LINEARS, codes_of, q4_0, run, write_llama

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("library")

MATRIX = """
files = Path(c.__file__).parent.glob("lib/libllama.*")
ggml = ctypes.CDLL(next(str(file) for file in files if file.suffix in (".so", ".dylib")))
pointer, i64 = ctypes.c_void_p, ctypes.c_int64
class Init(ctypes.Structure): _fields_ = [("size", ctypes.c_size_t), ("buffer", pointer), ("no_alloc", ctypes.c_bool)]
for name in ("init new_tensor_2d mul_mat new_graph backend_alloc_ctx_tensors_from_buft backend_alloc_ctx_tensors "
             "backend_reg_dev_get backend_cpu_buffer_type backend_cpu_reg backend_cpu_init "
             "backend_reg_get_proc_address").split():
    getattr(ggml, "ggml_" + name).restype = pointer
assert backend.enable(density=1.0).active

def sparse_type():
    cpu_reg = pointer(ggml.ggml_backend_cpu_reg())
    address = ggml.ggml_backend_reg_get_proc_address(cpu_reg, b"ggml_backend_dev_get_extra_bufts")
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(address)
    return pointer(listed(pointer(ggml.ggml_backend_reg_dev_get(cpu_reg, ctypes.c_size_t(0))))[0])

def tensor(context, kind, columns, rows):
    return pointer(ggml.ggml_new_tensor_2d(context, kind, i64(columns), i64(rows)))

def set_data(target, array):
    array = np.ascontiguousarray(array)
    ggml.ggml_backend_tensor_set(target, pointer(array.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(array.nbytes))

def get_data(source, like):
    found = np.empty_like(like)
    ggml.ggml_backend_tensor_get(source, pointer(found.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(found.nbytes))
    return found

data = np.load(sys.argv[1])
blocks, x, threads = data["blocks"], data["x"], int(sys.argv[2])
rows, columns = blocks.shape[0], x.shape[1]

def product(buffer_type):
    weights = pointer(ggml.ggml_init(Init(1 << 16, None, True)))
    w = tensor(weights, 2, columns, rows)
    assert ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer_type)
    set_data(w, blocks)
    others = pointer(ggml.ggml_init(Init(1 << 20, None, True)))
    inputs = tensor(others, 0, columns, len(x))
    y = pointer(ggml.ggml_mul_mat(others, w, inputs))
    graph = pointer(ggml.ggml_new_graph(others))
    ggml.ggml_build_forward_expand(graph, y)
    cpu_backend = pointer(ggml.ggml_backend_cpu_init())
    ggml.ggml_backend_cpu_set_n_threads(cpu_backend, threads)
    assert ggml.ggml_backend_alloc_ctx_tensors(others, cpu_backend)
    set_data(inputs, x)
    assert ggml.ggml_backend_graph_compute(cpu_backend, graph) == 0
    return get_data(y, np.empty((len(x), rows), np.float32)), get_data(w, blocks)

ours, kept = product(sparse_type())
count = backend.held()
stock, same = product(pointer(ggml.ggml_backend_cpu_buffer_type()))
assert backend.held()["matmuls"] == count["matmuls"] == 1  # the sparse kernel is what ran, and ran for ours alone
np.savez(sys.argv[3], ours=ours, stock=stock, kept=kept)
print(json.dumps(count))
"""


def computed(tmp_path, codes, scales, x, threads):
    np.savez(tmp_path / "in.npz", blocks=q4_0(codes, scales), x=x)
    count = run(MATRIX, tmp_path / "in.npz", threads, tmp_path / "out.npz")
    return count, np.load(tmp_path / "out.npz")


@pytest.mark.parametrize(
    ("out", "columns", "group", "tokens", "threads"),
    [(64, 128, 32, 1, 1), (50, 96, 96, 3, 2), (33, 512, 128, 17, 2), (256, 2048, 2048, 300, 2), (1, 32, 32, 200, 2)],
)
def test_weights_are_the_same_bits_and_sums_no_further_off_than_llama_cpp_s(
    tmp_path, out, columns, group, tokens, threads
):
    rng = np.random.default_rng(out)
    codes = codes_of(rng, out, columns, 0.5)
    scales = (rng.standard_normal((out, columns // group)) * 0.1).astype(np.float16)  # llama.cpp's may be negative
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x[:, :: columns // 32] *= 30  # outliers, as activations have
    count, found = computed(tmp_path, codes, scales, x, threads)

    assert np.array_equal(found["kept"], q4_0(codes, scales))
    assert (count["weights"], count["kept"]) == (codes.size, int((codes != 8).sum()))

    weight = (codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), group, 1)
    exact = x.astype(np.float64) @ weight.T
    ours, stock = (np.abs(found[name] - exact) for name in ("ours", "stock"))
    # groups of 32: 8 bits for 32 activations, as llama.cpp has; chance decides which of the two is a hair nearer
    nearer = 1.03 if group == 32 else 0.1
    assert np.sqrt((ours**2).mean()) <= nearer * np.sqrt((stock**2).mean())

    # csrc/kernel.h: a segment of at most 128 inputs is fixed point, of which half a step is lost
    width, steps = min(group, 128), 127 if group == 32 else 32639
    largest = np.abs(x).reshape(tokens, -1, width).max(2)
    bound = (0.51 / steps * largest) @ np.abs(weight).reshape(out, -1, width).sum(2).T
    bound += (columns // width + 4) * 2.0**-23 * 1.01 * (np.abs(x) @ np.abs(weight).T)
    assert (ours <= bound).all()


def test_the_same_bits_by_any_number_of_threads_and_in_any_batch(tmp_path):
    rng = np.random.default_rng(1)
    codes = codes_of(rng, 300, 1024, 0.4)
    scales = (0.01 * (1 + rng.random((300, 8)))).astype(np.float16)
    x = rng.standard_normal((260, 1024)).astype(np.float32)
    alone = computed(tmp_path, codes, scales, x, 1)[1]["ours"]
    assert np.array_equal(computed(tmp_path, codes, scales, x, 3)[1]["ours"], alone)
    assert np.array_equal(computed(tmp_path, codes, scales, x[:1], 2)[1]["ours"], alone[:1])


def test_rows_and_blocks_of_any_content_come_back(tmp_path):
    """Rows that are all zeros, that have none, and codes and scales of any bits."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (40, 320), np.uint8)
    codes[3] = 8
    codes[16:32] = 8
    scales = rng.integers(0, 0x7C00, (40, 10), np.uint16).view(np.float16)  # any finite number
    _, found = computed(tmp_path, codes, scales, np.zeros((1, 320), np.float32), 1)
    assert np.array_equal(found["kept"], q4_0(codes, scales))
    assert (found["ours"] == 0).all()


NAIVE = """
enabled = backend.enable(density=1.0)
context = context_of(model_of(sys.argv[1]), threads=2)
np.save(sys.argv[2], logits(context, [3, 1, 4, 1, 5, 9, 2, 6]))
print(json.dumps(backend.held()))
"""


def test_a_whole_model_gives_the_logits_of_a_naive_one(tmp_path):
    weights = write_llama(tmp_path / "model.gguf")
    count = run(NAIVE, tmp_path / "model.gguf", tmp_path / "logits.npy")
    assert count["tensors"] == LINEARS
    assert count["matmuls"] == LINEARS
    exact = naive_llama(weights, [3, 1, 4, 1, 5, 9, 2, 6])
    found = np.load(tmp_path / "logits.npy")
    assert np.abs(found - exact).max() < 2e-3 * np.abs(exact).max()


def naive_llama(weights, tokens):
    """float64 logits [tokens, vocabulary]: llama.cpp's order of the rotated pairs (2i, 2i + 1)."""
    from helpers_backend import GROUPS, HEADS, HIDDEN, LAYERS

    width = HIDDEN // HEADS
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    angles = np.arange(len(tokens))[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)

    def norm(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def rotate(x):  # [tokens, heads, width]
        even, odd = x[..., ::2], x[..., 1::2]
        cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).reshape(x.shape)

    x = w["token_embd"][tokens]
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        h = norm(x)
        q, k, v = ((h @ w[name + part].T).reshape(len(tokens), -1, width) for part in ("attn_q", "attn_k", "attn_v"))
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(each, HEADS // GROUPS, 1) for each in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(len(tokens), -1) @ w[name + "attn_output"].T
        h = norm(x)
        gate = h @ w[name + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[name + "ffn_up"].T)) @ w[name + "ffn_down"].T
    return norm(x) @ w["output"].T
