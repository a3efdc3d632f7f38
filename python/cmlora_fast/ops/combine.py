"""Weighted sum of the rows of an image, by image or by pixel, and guidance."""

import torch
from torch import Tensor

from . import reference
from ._check import (
    DTYPES,
    check_floats,
    check_no_grad,
    check_predictions,
    check_table,
    shape_error,
    wrote,
)
from ._register import register
from .backends import launch, pick


def _check(
    op: str, out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None
) -> None:
    check_floats(op, "out, noise", out, noise)
    check_table(op, "weights [J, B]", weights, torch.float32, noise.device)
    pixels = () if weights.dim() == 2 else noise.shape[4:]
    if noise.dim() != 6 or weights.shape != (*noise.shape[1:3], *pixels):
        expected = "noise [G, J, B, C, H, W], weights [J, B] or [J, B, H, W]"
        raise shape_error(op, expected, noise, weights)
    check_predictions(op, out, noise, guidance_scale)
    check_no_grad(op, "use torch.no_grad()", out, noise, weights)


@register(mutates_args=("out",))
def combine_(
    out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None = None
) -> None:
    """``out[g] = Σ_j weights[j] · noise[g, j]``; with a number s, ``out₀ + s · (out₁ - out₀)``

    Accumulates in float32 and rounds once. Overwrites ``out``, which must not overlap ``noise``.

    Args:
        out: [G, B, C, H, W], guided [B, C, H, W]; last dimension contiguous.
        noise: Predictions of G guidance parts (guided: unconditional, conditional) and J rows per
            image. [G, J, B, C, H, W], last dimension contiguous.
        weights: Share of each row, per image [J, B] or per pixel [J, B, H, W]. float32, contiguous.
        guidance_scale: Number s, or ``None`` to keep the parts apart.
    """
    op, guided = "combine_", guidance_scale is not None
    _check(op, out, noise, weights, guidance_scale)
    backend = pick(op, out, ("cpu", "cuda", "triton"))
    if backend == "torch":
        return reference.combine_(out, noise, weights, guidance_scale)
    if backend == "triton":
        from ..triton_kernels.combine import combine_ as kernel

        kernel(out, noise, weights, guidance_scale)
        return wrote(out)
    strides = out.stride() if guided else out.stride()[1:]
    launch(
        "combine",
        backend,
        out,
        out.data_ptr(),
        (0 if guided else out.stride(0), *strides[:3]),
        noise.data_ptr(),
        noise.shape,
        noise.stride(),
        weights.data_ptr(),
        weights.dim() == 4,
        guided,
        guidance_scale if guided else 0.0,
        DTYPES[out.dtype],
    )
    wrote(out)
