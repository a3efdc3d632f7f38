"""The kernels for GPUs against their twins, on the benchmarks' inputs at sizes for a CPU.

Without a GPU those of CUDA run on the CPU, and those of Triton in its interpreter.
"""

import contextlib
import math

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.benchmarks.ops.kernel_cases import CASES
from cmlora_fast.ops import reference

from ..support.op_checks import assert_as_good, written

GPU = torch.cuda.is_available()
STEP = 2.0**-23  # of float32

KERNELS = {
    f"{op}, {backend}, {name}": (op, backend, name)
    for op, its in CASES.items()
    for backend in its.kernels
    if backend != "cpu"
    for name, _ in its.cases(torch.float32, "tiny")
}


def outputs(function, written, given):
    """What a call returns, or writes to."""
    result = function(*given)
    if result is None:
        return [g for g, w in zip(given, written, strict=False) if w]
    return result if isinstance(result, tuple) else [result]


def exact(given, noise=0.0):
    """Arguments in float64, each number moved by a part of itself."""
    wide = [g.double() if torch.is_tensor(g) and g.is_floating_point() else g for g in given]
    return [g * (1 + noise * torch.randn_like(g)) if w is not g else g
            for g, w in zip(wide, given, strict=True)]  # fmt: skip


@pytest.fixture
def kernels_of(request):
    """The ops by the kernels of a backend, on this machine's GPU or in its place."""
    with contextlib.ExitStack() as stack:

        def choose(backend):
            if backend == "cuda" and not GPU:
                return request.getfixturevalue("cuda")
            try:
                stack.enter_context(ops.force(backend=backend))
            except RuntimeError as error:
                pytest.skip(str(error))
            return ops

        yield choose


@pytest.mark.parametrize("op, backend, name", KERNELS.values(), ids=KERNELS.keys())
def test_as_good_as_the_twin(op, backend, name, dtype, kernels_of, request, monkeypatch):
    if backend == "triton" and not GPU and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter knows no bfloat16")
    make = dict(CASES[op].cases(dtype, "tiny"))[name]

    def made():
        torch.manual_seed(request.config.option.seed)
        with torch.device("cuda" if GPU else "cpu"):
            return make()

    kernel, twin = getattr(kernels_of(backend), op), getattr(reference, op)
    writes = written(getattr(ops, op))
    theirs = outputs(twin, writes, made())
    wanted, moved = (outputs(twin, writes, exact(made(), noise)) for noise in (0.0, STEP))
    monkeypatch.delattr(reference, op)  # the kernel it is, or nothing
    ours = outputs(kernel, writes, made())
    for got, their, want, other in zip(ours, theirs, wanted, moved, strict=True):
        if not want.is_floating_point():
            assert torch.equal(got, want)
            continue
        # What a rounding of the inputs is worth, for every stage of a sum over them.
        spread = (other - want).abs().nan_to_num().max() / STEP * math.log2(2 + want.numel())
        assert_as_good(got, their, want, torch.maximum(want.abs().max(), spread))
