"""Mean of the rows of an image weighted by masks, and guidance."""

import torch
from torch import Tensor

from . import clora_reference as reference
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
    op: str, out: Tensor, noise: Tensor, masks: Tensor | None, guidance_scale: float | None
) -> None:
    check_floats(op, "out, noise", out, noise)
    if noise.dim() != 6 or not noise.shape[1]:
        raise shape_error(op, "noise [G, J, B, C, H, W] of at least one row", noise)
    check_predictions(op, out, noise, guidance_scale)
    check_no_grad(op, "use torch.no_grad()", out, noise)
    if masks is None:
        return
    check_table(op, "masks [J, B, H, W]", masks, torch.float32, noise.device)
    if masks.shape != (*noise.shape[1:3], *noise.shape[4:]):
        raise shape_error(op, "masks [J, B, H, W], noise [G, J, B, C, H, W]", masks, noise)


@register(mutates_args=("out",))
def mask_fuse_(
    out: Tensor, noise: Tensor, masks: Tensor | None, guidance_scale: float | None = None
) -> None:
    """``out[g] = Σ_j M_j · noise[g, j] / Σ_j M_j`` per pixel; with s, ``out₀ + s · (out₁ - out₀)``

    Accumulates in float32 and rounds once. Where no mask claims a pixel, and without masks, the
    plain mean of the rows. Overwrites ``out``, which must not overlap ``noise``.

    Args:
        out: [G, B, C, H, W], guided [B, C, H, W]; last dimension contiguous.
        noise: Predictions of G guidance parts (guided: unconditional, conditional) and J rows per
            image. [G, J, B, C, H, W], last dimension contiguous.
        masks: Weight of each row per pixel, >= 0. float32 [J, B, H, W], contiguous, or ``None``.
        guidance_scale: Number s, or ``None`` to keep the parts apart.
    """
    op, guided = "mask_fuse_", guidance_scale is not None
    _check(op, out, noise, masks, guidance_scale)
    if pick(op, out, ("cuda",)) == "torch":
        return reference.mask_fuse_(out, noise, masks, guidance_scale)
    strides = out.stride() if guided else out.stride()[1:]
    launch(
        "mask_fuse",
        "cuda",
        out,
        out.data_ptr(),
        (0 if guided else out.stride(0), *strides[:3]),
        noise.data_ptr(),
        noise.shape,
        noise.stride(),
        0 if masks is None else masks.data_ptr(),
        guided,
        guidance_scale if guided else 0.0,
        DTYPES[out.dtype],
    )
    wrote(out)
