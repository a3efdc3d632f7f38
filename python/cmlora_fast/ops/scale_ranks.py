"""Scales of a row's adapters on what their down-projections made."""

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


@register(mutates_args=("h",))
def scale_ranks_(h: Tensor, scales: Tensor) -> None:
    """``h[r] *= scales[r]``, where 0 times anything, infinity and NaN too, is 0

    What a row's adapters do not own leaves no trace in the product that follows.

    Args:
        h: Low-rank activations, updated in place. [rows, tokens, R], last dimension contiguous.
        scales: float32 [rows, R].
    """
    op = "scale_ranks_"
    check_floats(op, "h", h)
    if h.dim() != 3 or not last_contiguous(h):
        raise shape_error(op, "h [rows, tokens, R], contiguous in R", h)
    check_written(op, "h", h)
    check_table(op, "scales [rows, R]", scales, torch.float32, h.device)
    if scales.shape != (h.shape[0], h.shape[2]):
        raise shape_error(op, "scales [rows, R] for h [rows, tokens, R]", scales, h)
    check_no_grad(op, "use torch.no_grad()", h, scales)
    if pick(op, h, ("cuda",)) == "torch":
        return reference.scale_ranks_(h, scales)
    strides = h.stride()[:2]
    launch(
        "scale_ranks", "cuda", h, h.data_ptr(), scales.data_ptr(), h.shape, strides, DTYPES[h.dtype]
    )
    wrote(h)
