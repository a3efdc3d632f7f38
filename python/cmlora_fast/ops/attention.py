"""Attention of image tokens in the layout that the projections write."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, check_no_grad, last_contiguous, shape_error
from ._register import register
from .backends import isa, pick


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    check_floats(op, "q, k, v", q, k, v)
    expected = f"q [rows, queries, {heads} * D], k and v [rows, keys, {heads} * D], keys > 0"
    sizes = q.dim() == k.dim() == 3 and k.shape == v.shape and k.shape[1] > 0
    if not sizes or q.shape[::2] != k.shape[::2] or heads < 1 or q.shape[2] % heads:
        raise shape_error(op, expected, q, k, v)
    if not last_contiguous(q, k, v):
        raise shape_error(op, "q, k, v contiguous in their last dimension", q, k, v)
    check_no_grad(op, "use torch.no_grad()", q, k, v)


@register(
    fake=lambda q, k, v, heads, scale=None: torch.empty(q.shape, dtype=q.dtype, device=q.device)
)
def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """``out[r, i] = Σ_j softmax_j(scale · q[r, i] · k[r, j]) v[r, j]``, for every head by itself.

    Reads and writes tokens as linear layers leave them: nothing is transposed, no score leaves the
    processor's first cache. Accumulates in float32 and rounds once. No autograd.

    Args:
        q: [rows, queries, heads * D], last dimension contiguous.
        k: [rows, keys, heads * D], last dimension contiguous.
        v: As ``k``.
        heads: Number of heads, whose features stand side by side.
        scale: Factor of the scores; ``None`` is ``1 / sqrt(D)``.

    Returns:
        [rows, queries, heads * D], contiguous.
    """
    op = "attention"
    _check(op, q, k, v, heads)
    D = q.shape[2] // heads
    scale = D**-0.5 if scale is None else scale
    if pick(op, q, ("cpu",), matmul=True) == "torch":
        return reference.attention(q, k, v, heads, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _C.attention(
        out.data_ptr(),
        q.data_ptr(),
        q.stride()[:2],
        k.data_ptr(),
        k.stride()[:2],
        v.data_ptr(),
        v.stride()[:2],
        (*q.shape[:2], k.shape[1], heads, D),
        scale,
        DTYPES[q.dtype],
        isa(),
    )
    return out
