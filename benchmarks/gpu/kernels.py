"""Cases of the GPU benchmark: the ops, what torch and PEFT do instead, and bytes that must move."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference

from ..ops.kernel_cases import CASES
from ..ops.workloads import row_table

LAYERS = {  # tokens of a row, features
    "SD 1.5 64x64": (4096, 320),
    "SD 1.5 32x32": (1024, 640),
    "SD 1.5 16x16": (256, 1280),
    "SDXL 64x64": (4096, 640),
    "SDXL 32x32": (1024, 1280),
}
RANKS = (8, 32, 128)
ADAPTERS = 5
PARTS = 2  # guidance


@dataclass(frozen=True)
class Case:
    """Calls to compare; ``make(name)`` gives one of them, on memory of its own.

    ``bytes``: what has to be read and written; ``flops``: of the base product, where there is one.
    """

    op: str
    name: str
    variants: tuple[str, ...]
    make: Callable[[str], Callable[[], object]]
    bytes: int
    flops: int = 0


def cases(device: torch.device, small: bool = False) -> Iterator[Case]:
    layers = {"small": (24, 32)} if small else LAYERS
    ranks = (8,) if small else RANKS
    for layer, (tokens, d) in layers.items():
        yield from (_lora(layer, tokens, d, rank, device) for rank in ranks)
    for op, its in CASES.items():
        if "cuda" not in its.kernels or op == "lora_delta_":
            continue
        made = its.cases(torch.bfloat16, "tiny" if small else "quick")
        for name, make in itertools.islice(made, 1 if small else None):
            yield _case(op, name, make, device)


def _lora(layer: str, tokens: int, d: int, rank: int, device: torch.device) -> Case:
    """Composite: five adapters, each on the two guidance rows of its own."""
    rows, kind = PARTS * ADAPTERS, {"device": device, "dtype": torch.bfloat16}
    a = torch.randn(ADAPTERS * rank, d, **kind) / d**0.5
    b = torch.randn(d, ADAPTERS * rank, **kind)
    w = torch.randn(d, d, **kind) / d**0.5
    slots, *table = row_table([rank] * ADAPTERS, [[row // PARTS] for row in range(rows)])
    tables = [t.to(device) for t in (slots, *table)]
    downs = a.view(ADAPTERS, rank, d).mT.contiguous()
    ups = b.view(d, ADAPTERS, rank).permute(1, 2, 0).contiguous()
    folded = (w + ups.mT @ downs.mT).mT.contiguous()

    def make(variant: str) -> Callable[[], object]:
        x, y = torch.randn(rows, tokens, d, **kind), torch.randn(rows, tokens, d, **kind)
        x5, y5 = (t.view(ADAPTERS, PARTS * tokens, d) for t in (x, y))
        update = functools.partial(ops.lora_delta_, y, x, a, b, *tables)
        return {
            "cuda": update,
            "triton": update,
            "triton fused linear": lambda: ops.lora_linear(x, w, None, a, b, *tables),
            "base": lambda: torch.matmul(x, w.T, out=y),
            "folded": lambda: torch.bmm(x5, folded, out=y5),
            "shrink, expand": lambda: torch.baddbmm(y5, torch.bmm(x5, downs), ups, out=y5),
            "PEFT": lambda: [y5[j] + (x5[j] @ downs[j]) @ ups[j] * 0.8 for j in range(ADAPTERS)],
        }[variant]

    variants = ("base", "folded", "cuda", "triton", "triton fused linear", "shrink, expand", "PEFT")
    moved = 3 * rows * tokens * d * 2
    flops = 2 * rows * tokens * d * d
    return Case("lora_delta_", f"{layer}, rank {rank}", variants, make, moved, flops)


def backend_of(variant: str) -> str | None:
    """The backend in which the calls of a variant run, None for torch alone."""
    return next((name for name in ("cuda", "triton") if variant.startswith(name)), None)


def _case(op: str, name: str, make_inputs: Callable[[], tuple], device: torch.device) -> Case:
    """An op beside its twin."""

    def inputs() -> tuple:
        with torch.device(device):
            return make_inputs()

    def make(variant: str) -> Callable[[], object]:
        return functools.partial(getattr(reference if variant == "torch" else ops, op), *inputs())

    variants = (*(kernel for kernel in CASES[op].kernels if kernel != "cpu"), "torch")
    return Case(op, name, variants, make, CASES[op].moved(*inputs()))
