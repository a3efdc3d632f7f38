"""Attention of image tokens in the layout that the projections write."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, last_contiguous, shape_error
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


@register(
    fake=lambda q, k, v, heads, scale=None: torch.empty(q.shape, dtype=q.dtype, device=q.device)
)
def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """``out[r, i] = Σ_j softmax_j(scale · q[r, i] · k[r, j]) v[r, j]``, for every head by itself.

    Reads and writes tokens as linear layers leave them: nothing is transposed, no score leaves the
    processor's first cache. Accumulates in float32 and rounds once. Differentiable once.

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
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _Attention.apply(q, k, v, heads, scale)
    return _forward(q, k, v, heads, scale)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, lse: Tensor | None = None
) -> Tensor:
    """Fills ``lse`` [rows, heads, queries] with the logarithms of the softmax's sums."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _C.attention(
        out.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        q.data_ptr(),
        q.stride()[:2],
        k.data_ptr(),
        k.stride()[:2],
        v.data_ptr(),
        v.stride()[:2],
        (*q.shape[:2], k.shape[1], heads, q.shape[2] // heads),
        scale,
        DTYPES[q.dtype],
        isa(),
    )
    return out


class _Attention(torch.autograd.Function):
    """Backward by torch's flash attention, which wants what this forward keeps."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        lse = q.new_empty(q.shape[0], heads, q.shape[1], dtype=torch.float32)
        out = _forward(q, k, v, heads, scale, lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        q, k, v, out, lse = ctx.saved_tensors
        if not out.numel():
            return *(torch.zeros_like(tokens) for tokens in (q, k, v)), None, None
        grad, q, k, v, out = (
            tokens.unflatten(-1, (ctx.heads, -1)).transpose(1, 2) for tokens in (grad, q, k, v, out)
        )
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        slopes = backward(grad, q, k, v, out, lse, 0.0, False, scale=ctx.scale)
        return *(slope.transpose(1, 2).flatten(2) for slope in slopes), None, None
