"""The gated unit of a transformer's feed-forward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, shape_error
from ._register import register
from .backends import isa, pick


def _fake(x: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)


@register(fake=_fake)
def geglu(x: Tensor) -> Tensor:
    """``out = x[..., :N] · gelu(x[..., N:])``, with ``gelu(g) = g Φ(g)``

    Computes in float32 and rounds once. Differentiable once.

    Args:
        x: [..., 2N], contiguous.

    Returns:
        [..., N], contiguous.
    """
    op = "geglu"
    check_floats(op, "x", x)
    if x.dim() == 0 or x.shape[-1] % 2 or not x.is_contiguous():
        raise shape_error(op, "x [..., 2N], contiguous", x)
    if pick(op, x, ("cpu",)) == "torch":
        return reference.geglu(x)
    return _Geglu.apply(x) if torch.is_grad_enabled() and x.requires_grad else _forward(x)


def _forward(x: Tensor) -> Tensor:
    out = _fake(x)
    _C.geglu(out.data_ptr(), x.data_ptr(), *_sizes(out), DTYPES[x.dtype], isa())
    return out


def _sizes(out: Tensor) -> tuple[int, int]:
    """Tokens and N."""
    N = out.shape[-1]
    return out.numel() // N if N else 0, N


class _Geglu(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        addresses = dx.data_ptr(), grad.data_ptr(), x.data_ptr()
        _C.geglu_backward(*addresses, *_sizes(grad), DTYPES[x.dtype], isa())
        return dx
