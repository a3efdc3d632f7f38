"""A linear layer and the low-rank updates of its rows."""

import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._check import check_floats, check_no_grad, check_row_table, last_contiguous, shape_error
from ._register import register
from .backends import pick
from .lora_delta import KERNELS as LORA_DELTA
from .lora_delta import lora_delta_


def _fake(x, w, bias, a, b, slots, row_ptr, row_slot, row_scale):
    return x.new_empty(x.shape[0], x.shape[1], w.shape[0])


@register(fake=_fake)
def lora_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    """``x[r] wᵀ + bias + Σ_k row_scale[k] · (x[r] A_kᵀ) B_kᵀ``: a layer with ``lora_delta_`` inside

    The layer is rounded before the update; in one product they took 2 to 14 times the layer's time
    on an H200. No autograd.

    Args:
        x: Layer input. [rows, tokens, K], last dimension contiguous.
        w: Weight. [N, K], last dimension contiguous.
        bias: [N] or ``None``.
        a, b, slots, row_ptr, row_slot, row_scale: As for ``lora_delta_``.

    Returns:
        The layer's output. [rows, tokens, N].
    """
    op, tables = "lora_linear", (slots, row_ptr, row_slot, row_scale)
    given = (x, w, a, b) if bias is None else (x, w, a, b, bias)
    check_floats(op, "x, w, a, b, bias", *given)
    if x.dim() != 3 or w.dim() != 2 or a.dim() != 2 or b.dim() != 2 or x.shape[2] != w.shape[1]:
        raise shape_error(op, "x [rows, tokens, K], w [N, K]", x, w)
    fits = a.shape == (b.shape[1], w.shape[1]) and b.shape[0] == w.shape[0]
    if not fits or (bias is not None and bias.shape != w.shape[:1]):
        raise shape_error(op, "a [ΣR, K], b [N, ΣR] and a bias [N] for w [N, K]", w, a, b)
    if not last_contiguous(x, w) or not (bias is None or last_contiguous(bias)):
        raise shape_error(op, "a contiguous last dimension of x, w and bias", x, w)
    check_no_grad(op, "use torch.no_grad()", *given)
    check_row_table(op, x, x.shape[0], a.shape[0], tables)
    if pick(op, x, LORA_DELTA, matmul=True) == "torch" and not x.is_cuda:
        return reference.lora_linear(x, w, bias, a, b, *tables)
    y = F.linear(x, w, bias)
    lora_delta_(y, x, a, b, *tables)
    return y
