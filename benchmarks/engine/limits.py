"""The least time that a machine could take: work of the rows over its best measured rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from cmlora_fast.ops.products import linear
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import TEXT_WIDTH
from ..timing import paired_ms
from .loops import deep_part

__all__ = ["best_rates", "flops_by_kind", "flops_per_row", "limit_seconds"]

GEMM = 2048
CONVOLUTION = (2, 320, 64)  # images, channels, sides: one of SD 1.5's own


def flops_per_row(unet: nn.Module, size: int) -> dict[str, int]:
    """Floating-point operations of one sample without any LoRA: all of it, and the shallow part."""
    return {part: sum(kinds.values()) for part, kinds in flops_by_kind(unet, size).items()}


def flops_by_kind(unet: nn.Module, size: int) -> dict[str, dict[str, int]]:
    """The same by kind of layer.

    Counted on the meta device: linear layers, convolutions of one pixel among them, other
    convolutions, and attention.
    """
    with torch.device("meta"):
        unet = type(unet).from_config(unet.config).to(unet.dtype)
    x, text = torch.empty(1, 4, size, size), torch.empty(1, 77, TEXT_WIDTH)
    x, text = x.to("meta", unet.dtype), text.to("meta", unet.dtype)
    full = _flops(unet, lambda: unet(x, torch.tensor(1, device="meta"), text))
    embedding = torch.empty(1, unet.time_embedding.linear_2.out_features, device="meta")
    embedding = embedding.to(unet.dtype)
    below = torch.empty(1, unet.config.block_out_channels[0], size, size, device="meta")
    deep = _flops(unet, lambda: deep_part(unet, below.to(unet.dtype), embedding, text))
    return {"full": full, "shallow": {kind: full[kind] - deep[kind] for kind in full}}


@torch.no_grad()
def _flops(unet: nn.Module, call: Callable[[], object]) -> dict[str, int]:
    flops = dict.fromkeys(("linear", "convolution"), 0)

    def count(module: nn.Module, inputs: object, out: Tensor) -> None:
        wide = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        flops["convolution" if wide else "linear"] += 2 * out.numel() * module.weight[0].numel()

    layers = [m for m in unet.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with FlopCounterMode(display=False) as everything:
        call()
    for hook in hooks:
        hook.remove()
    return flops | {"attention": everything.get_total_flops() - sum(flops.values())}


@torch.no_grad()
def best_rates(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Measured operations per second of products by torch and by oneDNN, and of a convolution."""
    kind = {"dtype": dtype, "device": device}
    left, right = torch.randn(GEMM, GEMM, **kind), torch.randn(GEMM, GEMM, **kind)
    images, channels, side = CONVOLUTION
    x = torch.randn(images, channels, side, side, **kind)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, **kind)
    product, convolution = 2 * GEMM**3, 2 * 9 * images * channels**2 * side**2
    work = {"matmul": product, "linear": product, "convolution": convolution}
    times = paired_ms(
        {
            "matmul": lambda: left @ right,
            "linear": lambda: linear(left, right, None),
            "convolution": lambda: F.conv2d(x, weight, padding=1),
        },
        rounds=5,
    )
    return {name: 1e3 * work[name] / timing.low for name, timing in times.items()}


def limit_seconds(
    full_rows: int, shallow_rows: int, work: dict[str, int], rates: dict[str, float]
) -> float:
    """At the best of the rates."""
    flops = full_rows * work["full"] + shallow_rows * work["shallow"]
    return flops / max(rates.values())
