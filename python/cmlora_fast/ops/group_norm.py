"""Group normalisation of channels-last images, with what stands before and after it."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, check_no_grad, check_table, last_contiguous, shape_error
from ._register import register
from .backends import isa, pick


def _check(op: str, x: Tensor, groups: int, weight: Tensor, bias: Tensor, shift) -> None:
    check_floats(op, "x", x)
    if x.dim() != 3 or not last_contiguous(x):
        raise shape_error(op, "x [rows, tokens, C], contiguous in C", x)
    if groups < 1 or x.shape[2] % groups:
        raise ValueError(f"{op}: expected groups that divide C = {x.shape[2]}; got {groups}")
    tables = {"weight [C]": (weight, x.shape[2:]), "bias [C]": (bias, x.shape[2:])}
    if shift is not None:
        tables["shift [rows, C]"] = (shift, x.shape[::2])
    for name, (tensor, shape) in tables.items():
        check_table(op, name, tensor, torch.float32, x.device)
        if tensor.shape != shape:
            raise shape_error(op, f"{name} for x [rows, tokens, C]", tensor, x)
    check_no_grad(op, "use torch.no_grad()", x, weight, bias, *([] if shift is None else [shift]))


@register(
    fake=lambda x, groups, weight, bias, shift=None, eps=1e-5, silu=False: torch.empty(
        x.shape, dtype=x.dtype, device=x.device
    )
)
def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    """``z = x[r] + shift[r]``, ``out[r] = (z - mean) / sqrt(variance + eps) · weight + bias``

    Mean and variance are those of a row's tokens and of the ``C / groups`` channels of a group.
    With ``silu``, ``out · σ(out)``. Accumulates in float32 and rounds once. No autograd.

    Args:
        x: Images, channels last. [rows, tokens, C], last dimension contiguous.
        groups: Divides C.
        weight, bias: float32 [C].
        shift: float32 [rows, C], contiguous.

    Returns:
        [rows, tokens, C], contiguous.
    """
    op = "group_norm"
    _check(op, x, groups, weight, bias, shift)
    if pick(op, x, ("cpu",)) == "torch":
        return reference.group_norm(x, groups, weight, bias, shift, eps, silu)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    added = 0 if shift is None else shift.data_ptr()
    addresses = out.data_ptr(), x.data_ptr(), added, weight.data_ptr(), bias.data_ptr()
    kind = eps, silu, DTYPES[x.dtype], isa()
    _C.group_norm(*addresses, (*x.shape, groups), x.stride()[:2], *kind)
    return out
