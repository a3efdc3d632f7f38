"""Weights with their adapters folded in."""

from torch import Tensor

from . import reference
from ._check import DTYPES, addressed, check_floats, check_row_table, last_contiguous, shape_error
from ._register import register
from .backends import launch, pick


def _fake(w, a, b, slots, row_ptr, row_slot, row_scale):
    return w.new_empty(row_ptr.shape[0] - 1, w.shape[0], w.shape[1])


@register(fake=_fake)
def lora_fold(
    w: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    """``w + Σ_k row_scale[k] · B_k A_k`` over k in row_ptr[r] : row_ptr[r + 1], for every row r

    A_k and B_k are rank slices as for ``lora_delta_``. A row without entries is a copy of ``w``.
    Accumulates in float32 and rounds once. No autograd.

    Args:
        w: Base weight. [N, K], last dimension contiguous.
        a: Down-projections of all adapters, one after the other. [ΣR, K].
        b: Up-projections times alpha / rank. [N, ΣR].
        slots, row_ptr, row_slot, row_scale: Row table as for ``lora_delta_``.

    Returns:
        One weight per row of the table. [rows, N, K].
    """
    op, tables = "lora_fold", (slots, row_ptr, row_slot, row_scale)
    check_floats(op, "w, a, b", w, a, b)
    fits = w.dim() == a.dim() == b.dim() == 2
    if not fits or w.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
        raise shape_error(op, "w [N, K], a [ΣR, K], b [N, ΣR]", w, a, b)
    if not last_contiguous(w):
        raise shape_error(op, "a contiguous last dimension of w", w)
    table = check_row_table(op, w, None, a.shape[0], tables)
    backend = pick(op, w, ("cpu", "cuda"), matmul=True)
    if backend == "torch":
        return reference.lora_fold(w.detach(), a.detach(), b.detach(), *tables)
    folded = w.new_empty(row_ptr.shape[0] - 1, *w.shape)
    base, slabs = (w.data_ptr(), w.shape, w.stride()), addressed(a, b)
    launch("lora_fold", backend, w, table, folded.data_ptr(), *base, *slabs, DTYPES[w.dtype])
    return folded
