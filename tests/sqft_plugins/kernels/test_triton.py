"""The Triton kernel: in Triton's interpreter on small shapes, and on a GPU where there is one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent))
from helpers_kernels import make_case, make_x

HERE = Path(__file__).parent
CHILD = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from helpers_kernels import make_case, make_x
from sqft_plugins.kernels import triton as ours
torch.set_num_threads(1)
for out, width, group, density, tokens, symmetric, dtype in [
    (17, 40, 40, 0.5, 3, False, torch.float32),
    (32, 128, 32, 0.5, 1, True, torch.bfloat16),
    (20, 96, 32, 0.9, 18, False, torch.float32),
    (48, 64, 32, 0.1, 2, True, torch.float16),
    (16, 64, 64, 0.0, 2, True, torch.float32),
    (16, 136, 8, 1.0, 2, False, torch.float32),
]:
    case = make_case(out, width, group, density, symmetric)
    weight, x, bias = case.packed, make_x(tokens, width + 3, dtype)[:, 1 : width + 1], torch.randn(out).to(dtype)
    for b in (None, bias):
        y = ours.linear(x, weight.packed, weight.scales, weight.zero_points, b, out)
        exact = x.double() @ case.exact.t() + (0 if b is None else b.double())
        # sums in float32, then one rounding to the dtype of x
        bound = 2.0**-22 * width * (x.double().abs() @ case.exact.abs().t())
        bound += torch.finfo(dtype).eps * exact.abs() + 1e-6
        assert y.dtype == dtype and bool(((y.double() - exact).abs() <= bound).all()), (out, width, dtype)
        if b is None:
            assert bool((y[:, ~case.mask.any(1)] == 0).all())
    assert ours.linear(x[:0], weight.packed, weight.scales, weight.zero_points, None, out).shape == (0, out)
print("RAN")
"""


def interpreter_fails() -> bool:
    """Whether the interpreter of this Triton cannot work with this numpy."""
    versions = [Version(importlib.metadata.version(name)) for name in ("triton", "numpy")]
    return versions[0] < Version("3.7.1") and versions[1] >= Version("2.4")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (it comes with vLLM)")
def test_it_is_right_in_the_interpreter():
    if interpreter_fails():
        pytest.skip("Triton's interpreter before 3.7.1 makes int() of an array, which numpy 2.4 refuses")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True)
    assert done.stdout == "RAN\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_operator_takes_it(dtype):
    for out, width, group, tokens in [(512, 1024, 128, 1), (500, 1000, 1000, 17), (1024, 512, 32, 200)]:
        case = make_case(out, width, group, 0.5, symmetric=False)
        weight, x = case.packed.to("cuda"), make_x(tokens, width, dtype).cuda()
        bias = torch.randn(out, device="cuda", dtype=dtype)
        exact = x.double() @ case.exact.cuda().t() + bias.double()
        bound = 2.0**-22 * width * (x.double().abs() @ case.exact.cuda().abs().t())
        bound = bound + 2 * torch.finfo(dtype).eps * exact.abs() + 1e-6
        assert bool(((weight.linear(x, bias).double() - exact).abs() <= bound).all())
        planes = weight.linear_planes(x, [weight.values, weight.values], [tokens // 2, tokens - tokens // 2], bias)
        assert bool(((planes.double() - exact).abs() <= bound).all())
