"""Cases of the GPU benchmark: the ops, what torch and PEFT do instead, and bytes that must move."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference

from ..workloads import row_table

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
    sizes = (16,) if small else (64, 128)
    for size in sizes:
        yield _radial(size, device)
        yield _refresh(64 if small else 640, size, device)
        yield _combine(size, device)
    yield _tap(*(4, 32) if small else (256, 1280), device)


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


def _variants(name: str, make_inputs: Callable[[], tuple]) -> Callable:
    def make(variant: str) -> Callable[[], object]:
        inputs = make_inputs()
        module = reference if variant == "torch" else ops
        return functools.partial(getattr(module, name), *inputs)

    return make


def _radial(size: int, device: torch.device) -> Case:
    make = _variants("radial_amplitude", lambda: (torch.randn(1, 4, size, size, device=device),))
    return Case("radial_amplitude", f"{size}x{size}", ("cuda", "torch"), make, 4 * 4 * size**2)


def _refresh(channels: int, size: int, device: torch.device) -> Case:
    kind = {"device": device, "dtype": torch.bfloat16}

    def inputs():
        buffer = torch.zeros(PARTS * ADAPTERS, channels * 3 // 2, size, size, **kind)
        fresh = torch.randn(PARTS, channels, size, size, **kind)
        return buffer[:, :channels], fresh, torch.tensor([1, 6], dtype=torch.int32, device=device)

    moved = 2 * PARTS * channels * size**2 * 2
    variants = ("cuda", "triton", "torch")
    make = _variants("cache_refresh_", inputs)
    return Case("cache_refresh_", f"2 x {channels} x {size}x{size}", variants, make, moved)


def _tap(queries: int, features: int, device: torch.device) -> Case:
    """CLoRA with two concepts: three rows, four tracked tokens, a layer of SD 1.5 at 16x16."""
    kind = {"device": device, "dtype": torch.bfloat16}
    rows, keys, tracked = 3 * PARTS, 77, 4

    def inputs():
        q, k = (torch.randn(rows, n, features, **kind) for n in (queries, keys))
        return q, k, torch.tensor([2, 3, 5, 6], dtype=torch.int32, device=device), 8

    moved = rows * ((queries + keys) * features * 2 + queries * tracked * 4)
    name = f"{rows} rows, {queries} queries, {features} features"
    return Case("attention_tap", name, ("cuda", "torch"), _variants("attention_tap", inputs), moved)


def _combine(size: int, device: torch.device) -> Case:
    def inputs():
        noise = torch.randn(PARTS, ADAPTERS, 1, 4, size, size, device=device).bfloat16()
        return noise[0, 0].clone(), noise, torch.rand(ADAPTERS, 1, device=device), 7.5

    moved = (PARTS * ADAPTERS + 1) * 4 * size**2 * 2
    variants = ("cuda", "triton", "torch")
    return Case(
        "combine_", f"5 rows, {size}x{size}", variants, _variants("combine_", inputs), moved
    )
