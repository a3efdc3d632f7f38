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
OTHER_LAYERS = {  # tokens of a row, K, N
    "SD 1.5 16x16, feed-forward in": (256, 1280, 10240),
    "SD 1.5 16x16, feed-forward out": (256, 5120, 1280),
    "SDXL 64x64, feed-forward out": (4096, 2560, 640),
    "SDXL 32x32, feed-forward in": (1024, 1280, 10240),
    "SDXL 32x32, feed-forward out": (1024, 5120, 1280),
}
RANKS = (8, 32, 128)
ADAPTERS = 5
PARTS = 2  # guidance
MIXES = {  # adapters of each pair of guidance rows
    "10 rows, one each": [[j] for j in range(ADAPTERS)],  # Composite
    "2 rows, one": [[0]],
    "2 rows, five": [[*range(ADAPTERS)]],
}
BOTH = ("triton", "shrink, expand")  # ours, and two library products with factors made beforehand


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
    for op, its in CASES.items():
        if op == "lora_delta_":
            yield from _lora_cases(device, small)
        elif set(its.kernels) - {"cpu"}:
            made = its.cases(torch.bfloat16, "tiny" if small else "quick")
            for name, make in itertools.islice(made, 1 if small else None):
                yield _case(op, name, make, device)


def _lora_cases(device: torch.device, small: bool) -> Iterator[Case]:
    if small:
        yield _lora("small", (24, 32, 32), next(iter(MIXES)), 8, device)
        return
    for mix in MIXES:
        for layer, (tokens, d) in LAYERS.items():
            yield from (_lora(layer, (tokens, d, d), mix, rank, device) for rank in RANKS)
    for layer, shape in OTHER_LAYERS.items():
        yield from (_lora(layer, shape, mix, 32, device) for mix in MIXES)


def _lora(
    layer: str, shape: tuple[int, int, int], mix: str, rank: int, device: torch.device
) -> Case:
    (tokens, K, N), groups, kind = shape, MIXES[mix], {"device": device, "dtype": torch.bfloat16}
    G, rows, adapters = len(groups), PARTS * len(groups), 1 + max(map(max, groups))
    a = torch.randn(adapters * rank, K, **kind) / K**0.5
    b = torch.randn(N, adapters * rank, **kind)
    w = torch.randn(N, K, **kind) / K**0.5
    table = row_table([rank] * adapters, [group for group in groups for _ in range(PARTS)])
    tables = [t.to(device) for t in table]
    R = rank * len(groups[0])  # of a row
    downs, ups = a.view(G, R, K).mT.contiguous(), b.view(N, G, R).permute(1, 2, 0).contiguous()
    folded = (w + ups.mT @ downs.mT).mT.contiguous()

    def make(variant: str) -> Callable[[], object]:
        x, y = torch.randn(rows, tokens, K, **kind), torch.randn(rows, tokens, N, **kind)
        xs, ys = (t.view(G, PARTS * tokens, -1) for t in (x, y))
        return {
            "triton": functools.partial(ops.lora_delta_, y, x, a, b, *tables),
            "base": lambda: torch.matmul(x, w.T, out=y),
            "folded": lambda: torch.bmm(xs, folded, out=ys),
            "shrink, expand": lambda: torch.baddbmm(ys, torch.bmm(xs, downs), ups, out=ys),
            "PEFT": lambda: [ys[j] + (xs[j] @ downs[j]) @ ups[j] * 0.8 for j in range(G)],
        }[variant]

    full = mix == next(iter(MIXES))
    variants = ("base", "folded", *BOTH, "PEFT") if full else BOTH
    moved, flops = 2 * rows * tokens * (K + 2 * N), 2 * rows * tokens * K * N
    return Case("lora_delta_", f"{layer}, {mix}, rank {rank}", variants, make, moved, flops)


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
