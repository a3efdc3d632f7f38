"""Low-rank updates of a batch whose rows take different adapters."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import (
    DTYPES,
    addressed,
    check_floats,
    check_no_grad,
    check_row_table,
    check_written,
    last_contiguous,
    shape_error,
    wrote,
)
from ._register import register
from .backends import isa, launch, pick
from .tensors import accumulator

KERNELS = ("cpu", "triton")


def _check(op: str, x: Tensor, a: Tensor, b: Tensor, *out: Tensor) -> None:
    """``out``: y, where there is one."""
    check_floats(op, "y, x, a, b" if out else "x, a, b", *out, x, a, b)
    fits = x.dim() == 3 and a.dim() == b.dim() == 2
    fits = fits and x.shape[2] == a.shape[1] and a.shape[0] == b.shape[1]
    if not fits:
        raise shape_error(op, "x [rows, tokens, K], a [ΣR, K], b [N, ΣR]", x, a, b)
    if any(y.shape != (*x.shape[:2], b.shape[0]) for y in out):
        raise shape_error(op, "y [rows, tokens, N] for x [rows, tokens, K], b [N, ΣR]", *out, x, b)
    if not last_contiguous(*out, x):
        raise shape_error(op, "a contiguous last dimension of x and y", *out, x)


def _operands(y: Tensor, x: Tensor) -> tuple:
    """What the kernels are told of two tensors."""
    return y.data_ptr(), y.shape, y.stride(), x.data_ptr(), x.shape, x.stride()


def _run(backend: str, y: Tensor, x: Tensor, a: Tensor, b: Tensor, tables, table) -> None:
    """A kernel; ``table``: ``tables`` as those of ``_C`` take them."""
    if backend == "cpu":
        launch("lora_delta", "cpu", y, table, *_operands(y, x), *addressed(a, b), DTYPES[y.dtype])
        return
    from ..triton_kernels.lora_delta import lora_delta_ as kernel

    kernel(y, x, a, b, *tables)


def add_products(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *tables: Tensor) -> None:
    """The update by torch's products of all ranks, those that a row does not carry set to 0.

    For GPUs without a kernel: unlike the twin it does not ask the host for the tables' contents.
    """
    slots, row_ptr, row_slot, row_scale = tables
    rows, S, R = x.shape[0], slots.numel() - 1, a.shape[0]
    if not (rows and S and R):
        return
    entry = torch.arange(row_slot.numel(), device=x.device)
    of_row = (entry >= row_ptr[:-1, None]) & (entry < row_ptr[1:, None])  # [rows, nnz]
    of_slot = row_slot[:, None] == torch.arange(S, device=x.device)  # [nnz, S]
    same = of_row[:, :, None] & of_slot
    scale, carried = torch.where(same, row_scale[:, None], 0.0).sum(1), same.any(1)  # [rows, S]
    rank = torch.arange(R, dtype=slots.dtype, device=x.device)
    of_rank = (rank >= slots[:-1, None]) & (rank < slots[1:, None])  # [S, ΣR]
    slot, carried = of_rank.int().argmax(0), (carried[:, :, None] & of_rank).any(1)[:, None]
    scale = scale[:, None, slot]  # [rows, 1, ΣR]
    dtype = accumulator(x.dtype)
    hidden = torch.where(carried, x.to(dtype) @ a.T.to(dtype) * scale, 0.0)
    ups = torch.where(carried, b.to(dtype), 0.0)  # of each row: what it does not carry may be NaN
    total = torch.baddbmm(y.to(dtype), hidden, ups.mT)
    y.copy_(torch.where(carried.any(-1, keepdim=True), total, y.to(dtype)))


@register(mutates_args=("y",))
def lora_delta_(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> None:
    """``y[r] += Σ_k row_scale[k] · (x[r] A_kᵀ) B_kᵀ`` over k in row_ptr[r] : row_ptr[r + 1]

    A_k and B_k are the ranks ``slots[row_slot[k]] : slots[row_slot[k] + 1]`` of the slabs. A row
    without entries keeps every bit. Accumulates in float32 and rounds once; on a GPU bfloat16 is
    rounded between the two products as well. No autograd.

    Args:
        y: Layer output, updated in place. [rows, tokens, N], last dimension contiguous.
        x: Layer input. [rows, tokens, K], last dimension contiguous.
        a: Down-projections of all adapters, one after the other. [ΣR, K].
        b: Up-projections times alpha / rank. [N, ΣR].
        slots: First rank of each adapter, and the end. int32 [S + 1].
        row_ptr: First table entry of each row, and the end. int32 [rows + 1].
        row_slot: Adapter of each entry. int32 [nnz].
        row_scale: Scale of each entry. float32 [nnz].
    """
    _update(y, x, a, b, (slots, row_ptr, row_slot, row_scale))


class PackedAdapters:
    """Slabs that the CPU kernels have packed once: the same update, without packing at each call.

    Made by the owner of the slabs and dropped with them. Packs at the first use, and again when a
    slab was written to.
    """

    def __init__(self, a: Tensor, b: Tensor, slots: Tensor):
        """``a`` [ΣR, K], ``b`` [N, ΣR], ``slots`` [S + 1], as for ``lora_delta_``."""
        self.a, self.b, self.slots = a, b, slots
        self._key = self._kernel = None

    @property
    def bytes(self) -> int:
        """Of the packed copy, padding aside: float32, on the CPU alone."""
        return 4 * (self.a.numel() + self.b.numel()) if self.a.is_cpu else 0

    def lora_delta_(
        self, y: Tensor, x: Tensor, row_ptr: Tensor, row_slot: Tensor, row_scale: Tensor
    ) -> None:
        """``ops.lora_delta_(y, x, a, b, slots, row_ptr, row_slot, row_scale)``, bit for bit."""
        tables = self.slots, row_ptr, row_slot, row_scale
        if torch.compiler.is_compiling() or any(t.is_inference() for t in self._slabs()):
            lora_delta_(y, x, self.a, self.b, *tables)  # no versions to see a write by
        else:
            _update(y, x, self.a, self.b, tables, self)

    def run(self, y: Tensor, x: Tensor, table: "_C.RowTable") -> None:
        """The kernel, on checked arguments."""
        key = isa(), *((t.data_ptr(), t._version) for t in self._slabs())
        if key != self._key:
            slots = self.slots.data_ptr(), self.slots.numel() - 1
            slabs, dtype = _operands(self.a, self.b), DTYPES[self.a.dtype]
            self._kernel = _C.PackedAdapters(*slabs, *slots, dtype, isa())
            self._key = key
        self._kernel.lora_delta(table, *_operands(y, x), DTYPES[y.dtype])

    def _slabs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.b, self.slots


def _update(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    packed: PackedAdapters | None = None,
) -> None:
    op = "lora_delta_"
    _check(op, x, a, b, y)
    check_written(op, "y", y, x)
    check_no_grad(op, "use lora_delta, or torch.no_grad()", y, x, a, b)
    table = check_row_table(op, y, x.shape[0], a.shape[0], tables)
    backend = pick(op, y, KERNELS, matmul=True)
    if backend == "cpu" and packed is not None:
        packed.run(y, x, table)
        wrote(y)
    elif backend in KERNELS:
        _run(backend, y, x, a, b, tables, table)
        wrote(y)
    elif y.is_cuda:
        add_products(y, x, a, b, *tables)
    else:
        reference.lora_delta_(y, x, a, b, *tables)


def _fake(x, a, b, slots, row_ptr, row_slot, row_scale):
    return x.new_empty(x.shape[0], x.shape[1], b.shape[0])


def _needs_grad(x, a, b, *tables, **named_tables):
    return torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad)


@register(fake=_fake, through_torch=_needs_grad)
def lora_delta(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    """``Σ_k row_scale[k] · (x[r] A_kᵀ) B_kᵀ``, the update of ``lora_delta_`` alone

    Differentiable in x, by the same kernel with the matrices swapped: dx = Σ s (dy B) A.

    Args:
        x: Layer input. [rows, tokens, K], last dimension contiguous.
        a, b, slots, row_ptr, row_slot, row_scale: As for ``lora_delta_``.

    Returns:
        The update. [rows, tokens, N].
    """
    op, tables = "lora_delta", (slots, row_ptr, row_slot, row_scale)
    _check(op, x, a, b)
    table = check_row_table(op, x, x.shape[0], a.shape[0], tables)
    backend = pick(op, x, KERNELS, matmul=True)
    if backend == "torch" and not x.is_cuda:
        return reference.lora_delta(x, a, b, *tables)
    y = x.new_zeros(x.shape[0], x.shape[1], b.shape[0])
    if backend in KERNELS:
        _run(backend, y, x, a, b, tables, table)
    else:
        add_products(y, x, a, b, *tables)
    return y


def _setup_context(ctx, inputs, output):
    if any(ctx.needs_input_grad[1:]):
        raise RuntimeError("lora_delta: the gradient is in x alone; pass a and b detached")
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, grad):
    a, b, *tables = ctx.saved_tensors
    if not last_contiguous(grad):
        grad = grad.contiguous()
    # The registered op, not the direct call: tracers run this function too.
    return lora_delta.op(grad, b.T, a.T, *tables), *[None] * 6


lora_delta.op.register_autograd(_backward, setup_context=_setup_context)
