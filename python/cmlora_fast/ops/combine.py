"""Weighted sum of the rows of an image, by image or by pixel, and guidance."""

import torch
from torch import Tensor

from . import reference
from ._check import (
    DTYPES,
    check_floats,
    check_no_grad,
    check_table,
    check_written,
    last_contiguous,
    shape_error,
    wrote,
)
from ._register import register
from .backends import launch, pick
from .tensors import is_real


def _check(
    op: str, out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None
) -> None:
    check_floats(op, "out, noise", out, noise)
    check_table(op, "weights [J, B]", weights, torch.float32, noise.device)
    pixels = () if weights.dim() == 2 else noise.shape[4:]
    if noise.dim() != 6 or weights.shape != (*noise.shape[1:3], *pixels):
        expected = "noise [G, J, B, C, H, W], weights [J, B] or [J, B, H, W]"
        raise shape_error(op, expected, noise, weights)
    parts, form = noise.shape[:1], "[G, B, C, H, W]"
    if guidance_scale is not None:
        parts, form = (), "[B, C, H, W]"
        if not is_real(guidance_scale):
            raise TypeError(
                f"{op}: expected guidance_scale as a finite number or None; got {guidance_scale!r}"
            )
        if noise.shape[0] != 2:
            raise shape_error(op, "two guidance parts, noise [2, J, B, C, H, W], to guide", noise)
    if out.shape != (*parts, *noise.shape[2:]):
        raise shape_error(op, f"out {form} for noise [G, J, B, C, H, W]", out, noise)
    if not last_contiguous(out, noise):
        raise shape_error(op, "out and noise contiguous in W", out, noise)
    check_written(op, "out", out, noise)
    check_no_grad(op, "use torch.no_grad()", out, noise, weights)


@register(mutates_args=("out",))
def combine_(
    out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None = None
) -> None:
    """``out[g] = Σ_j weights[j] · noise[g, j]``; with a number s, ``out₀ + s · (out₁ - out₀)``

    Accumulates in float32 and rounds once. Overwrites ``out``, which must not overlap ``noise``. By
    pixel a CPU runs the torch twin.

    Args:
        out: [G, B, C, H, W], guided [B, C, H, W]; last dimension contiguous.
        noise: Predictions of G guidance parts (guided: unconditional, conditional) and J rows per
            image. [G, J, B, C, H, W], last dimension contiguous.
        weights: Share of each row, per image [J, B] or per pixel [J, B, H, W]. float32, contiguous.
        guidance_scale: Number s, or ``None`` to keep the parts apart.
    """
    op, guided = "combine_", guidance_scale is not None
    _check(op, out, noise, weights, guidance_scale)
    backend = pick(op, out, ("cpu", "cuda", "triton") if weights.dim() == 2 else ("cuda", "triton"))
    if backend == "torch":
        return reference.combine_(out, noise, weights, guidance_scale)
    if backend == "triton":
        from ..triton_kernels.combine import combine_ as kernel

        kernel(out, noise, weights, guidance_scale)
        return wrote(out)
    strides = (0, *out.stride()[:3]) if guided else out.stride()[:4]
    rows = noise.data_ptr(), noise.shape, noise.stride()
    shares, guide = (weights.data_ptr(), weights.dim() == 4), (guided, guidance_scale or 0.0)
    kind = DTYPES[out.dtype]
    launch("combine", backend, out, out.data_ptr(), strides, *rows, *shares, *guide, kind)
    wrote(out)
