"""Layer normalisation of tokens, with the residual addition before it."""

import torch
from torch import Tensor

from . import reference
from ._check import (
    DTYPES,
    check_floats,
    check_no_grad,
    check_room,
    check_vector,
    shape_error,
)
from ._register import register
from .backends import launch, pick


def _fake(x, weight, bias, eps=1e-5, residual=None, room=0):
    total = x if residual is None else torch.empty_like(x)
    return total, torch.empty(*x.shape[:-1], x.shape[-1] + room, dtype=x.dtype, device=x.device)


def _check(op: str, x: Tensor, weight, bias, residual, room: int) -> list[Tensor]:
    """All tensors of the call."""
    tensors = [x] if residual is None else [x, residual]
    check_floats(op, "x, residual", *tensors)
    if any(t.dim() == 0 or t.shape != x.shape or not t.is_contiguous() for t in tensors):
        raise shape_error(op, "x and residual [..., C], contiguous", *tensors)
    affine = [t for t in (weight, bias) if t is not None]
    for name, tensor in (("weight [C]", weight), ("bias [C]", bias)):
        if tensor is not None:
            check_vector(op, name, tensor, x)
    if len({t.dtype for t in affine}) > 1:
        raise TypeError(
            f"{op}: expected weight and bias of one dtype; got {weight.dtype}, {bias.dtype}"
        )
    check_room(op, room)
    return [*tensors, *affine]


@register(fake=lambda x, weight, bias, eps=1e-5, room=0: _fake(x, weight, bias, eps, None, room)[1])
def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, room: int = 0
) -> Tensor:
    """``out = (x - mean) / sqrt(variance + eps) · weight + bias``

    Mean and variance are those of a token's C features. Accumulates in float32 and rounds once. No
    autograd.

    Args:
        x: [..., C], contiguous.
        weight, bias: float32 or x's dtype. [C]; None: 1 and 0.
        room: Columns behind C that are left free, for what the next product also reads.

    Returns:
        [..., C + room], contiguous.
    """
    return _run("layer_norm", x, weight, bias, eps, None, room)[1]


@register(
    fake=lambda x, residual, weight, bias, eps=1e-5, room=0: _fake(
        x, weight, bias, eps, residual, room
    )
)
def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    room: int = 0,
) -> tuple[Tensor, Tensor]:
    """``total = x + residual``, and the ``layer_norm`` of the total as it is rounded

    Args:
        x, residual: [..., C], contiguous.
        weight, bias, eps, room: As for ``layer_norm``.

    Returns:
        ``total`` [..., C] and its norm [..., C + room], contiguous.
    """
    return _run("add_layer_norm", x, weight, bias, eps, residual, room)


def _run(op: str, x, weight, bias, eps: float, residual, room: int) -> tuple[Tensor, Tensor]:
    check_no_grad(op, "use torch.no_grad()", *_check(op, x, weight, bias, residual, room))
    if pick(op, x, ("cuda",)) == "torch":
        if residual is None:
            return x, reference.layer_norm(x, weight, bias, eps, room)
        return reference.add_layer_norm(x, residual, weight, bias, eps, room)
    total, out = _fake(x, weight, bias, eps, residual, room)
    given = out, None if residual is None else total, x, residual, weight, bias
    affine = next((t.dtype for t in (weight, bias) if t is not None), x.dtype)
    C = x.shape[-1]
    sizes = x.numel() // C if C else 0, C, C + room
    addresses = [0 if t is None else t.data_ptr() for t in given]
    launch("layer_norm", "cuda", x, addresses, sizes, eps, DTYPES[x.dtype], DTYPES[affine])
    return total, out
