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
    expected = f"q [rows, queries, {heads} * D], k and v [rows, keys, {heads} * D]"
    expected += ", keys > 0, D > 0"
    sizes = q.dim() == k.dim() == 3 and k.shape == v.shape and k.shape[1] > 0 and q.shape[2] > 0
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
    _C.attention(*_arguments(out, lse, q, k, v, heads, scale))
    return out


def _arguments(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float
) -> tuple:
    results = out.data_ptr(), 0 if lse is None else lse.data_ptr()
    inputs = (told for x in (q, k, v) for told in (x.data_ptr(), x.stride()[:2]))
    sizes = *q.shape[:2], k.shape[1], heads, q.shape[2] // heads
    return *results, *inputs, sizes, scale, DTYPES[q.dtype], isa()


class _Attention(torch.autograd.Function):
    """Keeps its inputs and output, and the softmax's sums."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        lse = q.new_empty(q.shape[0], heads, q.shape[1], dtype=torch.float32)
        out = _forward(q, k, v, heads, scale, lse)
        ctx.save_for_backward(out, lse, q, k, v)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        out, lse, q, k, v = ctx.saved_tensors
        grad = grad.contiguous()
        constant = not any(ctx.needs_input_grad[1:3])  # keys and values, as of a prompt
        slopes = [
            None if constant and x is not q else torch.empty(x.shape, dtype=x.dtype)
            for x in (q, k, v)
        ]
        _C.attention_backward(
            *(0 if slope is None else slope.data_ptr() for slope in slopes),
            grad.data_ptr(),
            *_arguments(out, lse, q, k, v, ctx.heads, ctx.scale),
        )
        return *slopes, None, None
