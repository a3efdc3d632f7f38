"""Attention maps of a few keys, summed over heads."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, check_table, last_contiguous, shape_error
from ._register import register
from .backends import launch, pick


def _fake(q, k, columns, heads, scale=None):
    return q.new_empty(*q.shape[:2], columns.shape[0], dtype=torch.float32)


@register(fake=_fake)
def attention_tap(
    q: Tensor, k: Tensor, columns: Tensor, heads: int, scale: float | None = None
) -> Tensor:
    """``maps[r, i, c] = Σ_h softmax_j(scale · q[r, i, h] · k[r, j, h])[columns[c]]``

    What attention pays to some of its keys, whatever it does with the rest. On a GPU no score
    reaches memory. Computed in float32. Differentiable once.

    Args:
        q: [rows, queries, heads * D], last dimension contiguous.
        k: [rows, keys, heads * D], last dimension contiguous.
        columns: Keys whose maps are wanted, in 0 : keys. int32 [C].
        heads: Number of heads, whose features stand side by side.
        scale: Factor of the scores; ``None`` is ``1 / sqrt(D)``.

    Returns:
        float32 [rows, queries, C].
    """
    op = "attention_tap"
    check_floats(op, "q, k", q, k)
    sizes = q.dim() == k.dim() == 3 and k.shape[1] > 0 and q.shape[::2] == k.shape[::2]
    if not sizes or heads < 1 or q.shape[2] % heads or not q.shape[2]:
        expected = f"q [rows, queries, {heads} * D], k [rows, keys, {heads} * D], keys and D > 0"
        raise shape_error(op, expected, q, k)
    if not last_contiguous(q, k):
        raise shape_error(op, "q and k contiguous in their last dimension", q, k)
    check_table(op, "columns [C]", columns, torch.int32, q.device)
    if columns.dim() != 1:
        raise shape_error(op, "columns [C]", columns)
    scale = (q.shape[2] // heads) ** -0.5 if scale is None else scale
    recorded = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    kernel = pick(op, q, ("cuda",)) == "cuda" and _C.cuda.attention_tap_fits(k.shape[1])
    if not kernel or (recorded and k.requires_grad):
        return reference.attention_tap(q, k, columns, heads, scale)
    if recorded:
        return _AttentionTap.apply(q, k, columns, heads, scale)
    return _forward(q, k, columns, heads, scale)


def _forward(q: Tensor, k: Tensor, columns: Tensor, heads: int, scale: float) -> Tensor:
    maps = _fake(q, k, columns, heads)
    _launch("attention_tap", (maps.data_ptr(), 0, 0), q, k, columns, heads, scale)
    return maps


def _launch(
    kernel: str,
    outputs: tuple[int, int, int],
    q: Tensor,
    k: Tensor,
    columns: Tensor,
    heads: int,
    scale: float,
) -> None:
    """``outputs``: addresses of the maps, of their gradient and of that of q; 0 for none."""
    rows, queries, features = q.shape
    addresses = *outputs, q.data_ptr(), k.data_ptr(), columns.data_ptr()
    sizes = rows, queries, k.shape[1], heads, features // heads, columns.numel()
    strides = q.stride()[:2], k.stride()[:2]
    launch(kernel, "cuda", q, *addresses, sizes, *strides, scale, DTYPES[q.dtype])


class _AttentionTap(torch.autograd.Function):
    """Keeps its inputs; the gradient is in q alone."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, columns: Tensor, heads: int, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, columns)
        ctx.heads, ctx.scale = heads, scale
        return _forward(q, k, columns, heads, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        q, k, columns = ctx.saved_tensors
        grad, slope = grad.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
        outputs = 0, grad.data_ptr(), slope.data_ptr()
        _launch("attention_tap_backward", outputs, q, k, columns, ctx.heads, ctx.scale)
        return slope, *[None] * 4
