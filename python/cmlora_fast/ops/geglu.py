"""The gated unit of a transformer's feed-forward."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, check_no_grad, shape_error
from ._register import register
from .backends import isa, pick


def _fake(x: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)


@register(fake=_fake)
def geglu(x: Tensor) -> Tensor:
    """``out = x[..., :N] · gelu(x[..., N:])``, with ``gelu(g) = g Φ(g)``. No autograd.

    Computes in float32 and rounds once.

    Args:
        x: [..., 2N], contiguous.

    Returns:
        [..., N], contiguous.
    """
    op = "geglu"
    check_floats(op, "x", x)
    if x.dim() == 0 or x.shape[-1] % 2 or not x.is_contiguous():
        raise shape_error(op, "x [..., 2N], contiguous", x)
    check_no_grad(op, "use torch.no_grad()", x)
    if pick(op, x, ("cpu",)) == "torch":
        return reference.geglu(x)
    out, N = _fake(x), x.shape[-1] // 2
    tokens = out.numel() // N if N else 0
    _C.geglu(out.data_ptr(), x.data_ptr(), tokens, N, DTYPES[x.dtype], isa())
    return out
