"""A residual addition, with the bias of what came before it."""

import torch
from torch import Tensor

from . import reference
from ._check import DTYPES, check_floats, check_no_grad, check_room, check_vector, shape_error
from ._register import register
from .backends import launch, pick


def _fake(x, y, shift, room=0):
    return torch.empty(*x.shape[:-1], x.shape[-1] + room, dtype=x.dtype, device=x.device)


@register(fake=_fake)
def add_shift(x: Tensor, y: Tensor, shift: Tensor, room: int = 0) -> Tensor:
    """``out = x + y + shift``

    Accumulates in float32 and rounds once. No autograd.

    Args:
        x, y: [..., C], contiguous.
        shift: float32 or x's dtype. [C].
        room: Columns behind C that are left free, for what the next product also reads.

    Returns:
        [..., C + room], contiguous.
    """
    op = "add_shift"
    check_floats(op, "x, y", x, y)
    if x.dim() == 0 or x.shape != y.shape or not (x.is_contiguous() and y.is_contiguous()):
        raise shape_error(op, "x and y [..., C], contiguous", x, y)
    check_vector(op, "shift [C]", shift, x)
    check_room(op, room)
    check_no_grad(op, "use torch.no_grad()", x, y, shift)
    if pick(op, x, ("cuda",)) == "torch":
        return reference.add_shift(x, y, shift, room)
    out, C = _fake(x, y, shift, room), x.shape[-1]
    addresses = [t.data_ptr() for t in (out, x, y, shift)]
    sizes = x.numel() // C if C else 0, C, C + room
    launch(op, "cuda", x, addresses, sizes, DTYPES[x.dtype], DTYPES[shift.dtype])
    return out
