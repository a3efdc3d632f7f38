"""Every op against its torch twin and what else a user would write: time, rate and error."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from cmlora_fast import ops
from cmlora_fast.ops import backends, reference
from cmlora_fast.ops.radial_amplitude import kernels_for

from ..timing import paired_ms
from .baselines import BASELINES
from .kernel_cases import CASES

COPIED = 2**24  # elements: beyond the caches
GEMM_SIZE = 2048


def machine_rates(dtype: torch.dtype) -> dict[str, float]:
    """GB/s of a copy in memory, read and write counted, and GFLOP/s of a matrix product."""
    source, target = torch.randn(COPIED).to(dtype), torch.empty(COPIED, dtype=dtype)
    left, right, out = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(3))
    times = paired_ms(
        {
            "copy": lambda: target.copy_(source),
            "gemm": lambda: torch.mm(left, right, out=out),
        }
    )
    moved, flops = 2 * source.nbytes, 2 * GEMM_SIZE**3
    return {
        "copy_gb_per_s": moved / times["copy"].median / 1e6,
        "gemm_gflop_per_s": flops / times["gemm"].median / 1e6,
    }


def cases(
    chosen: Sequence[str], dtype: torch.dtype, quick: bool
) -> list[tuple[str, str, Callable]]:
    """Op, name and maker of the inputs of every case."""
    size = "quick" if quick else "full"
    return [(op, name, make) for op in chosen for name, make in CASES[op].cases(dtype, size)]


def measure(op: str, inputs: tuple, seconds: float, rates: dict[str, float]) -> dict[str, Any]:
    """Times of all calls in rounds of changing order, rates of ours, errors against float64."""
    ours, twin = getattr(ops, op), getattr(reference, op)
    calls = {"ours": lambda: ours(*inputs), "twin": lambda: twin(*inputs)}
    errors = _errors(op, inputs)  # first: the calls below go on adding to their output
    its = CASES[op]
    moved = its.moved(*inputs)
    times = paired_ms(calls | BASELINES.get(op, _none)(*inputs), seconds=seconds)
    best = _fastest_unfused(times)
    per_ms = 1e6 * times["ours"].median
    row = {
        "ran": ran(op, inputs[0]),
        "microseconds": {name: _microseconds(t) for name, t in times.items()},
        "gb_per_s": moved / per_ms,
        "copy_share": moved / per_ms / rates["copy_gb_per_s"],
        "speedup": {
            name: times[name].median / times[ours_of(name)].median
            for name in times
            if name in ("twin", "numpy", "channels last", "PEFT layer")
        },
        **errors,
    }
    if best:
        row["best_pair"] = best
        row["speedup"]["best pair"] = times[best].median / times["ours"].median
        row["speedup"]["best pair, packed"] = times[best].median / times["packed"].median
    if its.flops:
        flops = its.flops(*inputs)
        row["gflop_per_s"] = flops / per_ms
        row["gemm_share"] = flops / per_ms / rates["gemm_gflop_per_s"]
    return row


def ours_of(name: str) -> str:
    """What of ours stands against a baseline: PEFT's layer includes the base product."""
    return "our layer" if name == "PEFT layer" else "ours"


def ran(op: str, tensor: torch.Tensor) -> str:
    """Which version a call takes: instruction set, or that it is handed over to torch."""
    kernels = kernels_for(*tensor.shape[2:]) if op == "radial_amplitude" else ("cpu",)
    backend = backends.pick(op, tensor, kernels, matmul=CASES[op].flops is not None)
    return backends.ISAS[backends.isa()] if backend == "cpu" else "handed over to torch"


def _errors(op: str, inputs: tuple) -> dict[str, float]:
    """Largest error against float64, by the largest value: ours and torch in the same dtype."""
    twin = getattr(reference, op)
    exact = _result(twin, inputs, torch.float64)
    largest = exact.abs().max()

    def error(function):
        return ((_result(function, inputs).double() - exact).abs().max() / largest).item()

    return {"error": error(getattr(ops, op)), "twin_error": error(twin)}


def _result(function, inputs, dtype=None):
    """What the op returns, or writes into a copy of its first argument."""
    copies = [
        t.to(dtype, copy=True) if torch.is_tensor(t) and t.is_floating_point() and dtype else t
        for t in inputs
    ]
    copies[0] = copies[0].clone()
    result = function(*copies)
    result = copies[0] if result is None else result
    return result[1] if isinstance(result, tuple) else result


def _fastest_unfused(times) -> str | None:
    """The twin is a pair of products, too, and in float32 one without a copy of y."""
    pairs = [name for name in times if name.startswith("pair ")]
    return min([*pairs, "twin"], key=lambda name: times[name].median) if pairs else None


def _microseconds(timing) -> dict[str, float]:
    return {name: 1e3 * value for name, value in asdict(timing).items()}


def _none(*inputs) -> dict:
    return {}
