"""The gated unit of a transformer's feed-forward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, check_room, shape_error
from ._register import register
from .backends import isa, launch, pick


def _fake(x: Tensor, room: int = 0) -> Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] // 2 + room, dtype=x.dtype, device=x.device)


@register(fake=_fake)
def geglu(x: Tensor, room: int = 0) -> Tensor:
    """``out = x[..., :N] · gelu(x[..., N:])``, with ``gelu(g) = g Φ(g)``

    Computes in float32 and rounds once. Differentiable once.

    Args:
        x: [..., 2N], contiguous.
        room: Columns behind N that are left free, for what the next product also reads; no graph
            is recorded then.

    Returns:
        [..., N + room], contiguous.
    """
    op = "geglu"
    check_floats(op, "x", x)
    if x.dim() == 0 or x.shape[-1] % 2 or not x.is_contiguous():
        raise shape_error(op, "x [..., 2N], contiguous", x)
    check_room(op, room)
    backend = pick(op, x, ("cpu", "cuda"))
    recorded = torch.is_grad_enabled() and x.requires_grad
    if backend == "torch" or (recorded and (room or backend == "cuda")):
        return reference.geglu(x, room)
    return _Geglu.apply(x) if recorded else _forward(x, backend, room)


def _forward(x: Tensor, backend: str = "cpu", room: int = 0) -> Tensor:
    out, N = _fake(x, room), x.shape[-1] // 2
    addresses = out.data_ptr(), N + room, x.data_ptr()
    launch("geglu", backend, x, *addresses, *_sizes(x), DTYPES[x.dtype])
    return out


def _sizes(x: Tensor) -> tuple[int, int]:
    """Tokens and N."""
    N = x.shape[-1] // 2
    return x.numel() // (2 * N) if N else 0, N


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
        _C.geglu_backward(*addresses, *_sizes(x), DTYPES[x.dtype], isa())
        return dx
