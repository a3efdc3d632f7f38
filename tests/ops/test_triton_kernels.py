"""The Triton kernels on a GPU, else in Triton's interpreter, which knows no bfloat16."""

import json
import os
import subprocess
import sys

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from op_checks import MIXES, RowTable, assert_as_good

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")

# More ranks on a row than one pass holds (128), and a slab wide enough to show it.
MANY_RANKS = RowTable([100, 60, 7], [[(0, 0.5), (1, -1.0), (2, 1.0)], [(1, 2.0)], []])

LORA_CASES = {
    **{f"{name}, odd sizes": (mix, (13, 37, 41)) for name, mix in MIXES.items()},
    "several blocks": (MIXES["plain"], (70, 130, 80)),  # two of tokens, three of K, two of N
    "more ranks than a pass": (MANY_RANKS, (13, 37, 70)),
}


@pytest.fixture(autouse=True)
def triton():
    with ops.force(backend="triton"):
        yield


def move(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix, shape", LORA_CASES.values(), ids=LORA_CASES.keys())
def test_lora_delta(mix, shape, dtype):
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    buffer, x = torch.randn(rows, tokens, N + 3), torch.randn(rows, tokens, K)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(total, N).T  # b is strided
    buffer, x, a, b = (tensor.to(dtype) for tensor in (buffer, x, a, b))
    buffer, x, a, b, *tables = move(buffer, x, a, b, *mix.tensors())
    y = buffer[..., 1:-2]
    exact, twin, before = y.double(), y.clone(), buffer.clone()
    reference.lora_delta_(exact, x.double(), a.double(), b.double(), *tables)
    reference.lora_delta_(twin, x, a, b, *tables)
    ops.lora_delta_(y, x, a, b, *tables)
    assert_as_good(y, twin, exact)
    assert torch.equal(buffer[..., 0], before[..., 0])
    assert torch.equal(buffer[..., -2:], before[..., -2:])
    for row, entries in enumerate(mix.rows):
        assert entries or torch.equal(y[row], before[row, :, 1:-2])


def test_unused_adapters_are_not_read():
    mix = RowTable([4, 8, 4], [[(0, 1.0)], [(2, 0.5)]])
    x, a, b = torch.randn(2, 5, 16), torch.randn(16, 16), torch.randn(8, 16)
    a[4:12] = b[:, 4:12] = float("nan")
    x, a, b, *tables = move(x, a, b, *mix.tensors())
    assert ops.lora_delta(x, a, b, *tables).isfinite().all()


def test_gradient_in_x():
    mix = MIXES["plain"]
    x, a, b = torch.randn(2, 5, 16), torch.randn(mix.total_rank, 16), torch.randn(8, mix.total_rank)
    x, a, b, *tables = move(x, a, b, *mix.tensors())
    x.requires_grad_()
    (ours,) = torch.autograd.grad(ops.lora_delta(x, a, b, *tables).square().sum(), x)
    (twin,) = torch.autograd.grad(reference.lora_delta(x, a, b, *tables).square().sum(), x)
    torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cache_refresh(dtype):
    buffer, fresh = move(torch.randn(4, 9, 5, 8).to(dtype), torch.randn(2, 4, 5, 8).to(dtype))
    before = buffer.clone()
    (rows,) = move(torch.tensor([3, 1], dtype=torch.int32))
    ops.cache_refresh_(buffer[:, 2:6], fresh, rows)
    before[[3, 1], 2:6] = fresh
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("scale", [None, 7.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine(dtype, scale):
    noise, weights = move(torch.randn(2, 3, 2, 4, 9, 7).to(dtype), torch.randn(3, 2))
    noise = noise.transpose(3, 4).contiguous().transpose(3, 4)
    out = torch.zeros(noise.shape[2:] if scale else (2, *noise.shape[2:]), device=DEVICE)
    out, exact = out.to(dtype), out.double()
    twin = out.clone()
    reference.combine_(exact, noise.double(), weights, scale)
    reference.combine_(twin, noise, weights, scale)
    ops.combine_(out, noise, weights, scale)
    assert_as_good(out, twin, exact)


COMPILE = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cmlora_fast.triton_kernels.cache_refresh import _cache_refresh_kernel
from cmlora_fast.triton_kernels.combine import _combine_kernel
from cmlora_fast.triton_kernels.lora_delta import _lora_delta_kernel

TENSORS = {"slots_ptr", "row_ptr_ptr", "row_slot_ptr", "rows_ptr"}
report = {}
for element in ("fp32", "fp16", "bf16"):
    precision = "tf32x3" if element == "fp32" else "ieee"
    blocks = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_R": 128, "PRECISION": precision}
    for kernel, constants in (
        (_lora_delta_kernel, blocks),
        (_cache_refresh_kernel, {"BLOCK": 1024}),
        (_combine_kernel, {"GUIDED": True, "BLOCK": 1024}),
    )[: 3 if element == "fp16" else 1]:
        signature = {}
        for name in kernel.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name in TENSORS:
                signature[name] = "*i32"
            elif name in ("row_scale_ptr", "weights_ptr"):
                signature[name] = "*fp32"
            elif name.endswith("_ptr"):
                signature[name] = "*" + element
            else:
                signature[name] = "fp32" if name == "guidance_scale" else "i32"
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        report[f"{kernel.__name__} {element}"] = [compiled.metadata.shared, "ptx" in compiled.asm]
print(json.dumps(report))
"""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report) == 5
    for shared, has_ptx in report.values():
        assert has_ptx and shared <= 227 * 1024  # shared memory of one H100 or H200 block
