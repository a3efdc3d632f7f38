"""Group normalisation of channels-last images, with what stands before and after it."""

import torch
from torch import Tensor

from . import reference
from ._check import (
    DTYPES,
    check_floats,
    check_no_grad,
    check_room,
    check_vector,
    last_contiguous,
    shape_error,
)
from ._register import register
from .backends import launch, pick

# A GPU's blocks for one row: two rows, of guidance, are then under way at once (132 processors with
# three blocks each). They do not follow the number of rows, on which no row's result depends.
BLOCKS = 132 * 3 // 2
SPAN = 80  # channels of a block, about: see csrc/cuda/group_norm.cu
MOST_CHUNKS = 64  # of a row's tokens
FEWEST_TOKENS = 16  # of a chunk


def _check(op: str, x: Tensor, groups: int, weight: Tensor, bias: Tensor, shift, room) -> None:
    check_floats(op, "x", x)
    if x.dim() != 3 or not last_contiguous(x):
        raise shape_error(op, "x [rows, tokens, C], contiguous in C", x)
    if groups < 1 or x.shape[2] % groups:
        raise ValueError(f"{op}: expected groups that divide C = {x.shape[2]}; got {groups}")
    check_vector(op, "weight [C]", weight, x)
    check_vector(op, "bias [C]", bias, x)
    if weight.dtype is not bias.dtype:
        raise TypeError(
            f"{op}: expected weight and bias of one dtype; got {weight.dtype}, {bias.dtype}"
        )
    if shift is not None:
        _check_shift(op, x, shift)
    check_room(op, room)
    check_no_grad(op, "use torch.no_grad()", x, weight, bias, *([] if shift is None else [shift]))


def _check_shift(op: str, x: Tensor, shift: Tensor) -> None:
    expected = "shift [rows or 1, C], contiguous in C, of float32 or x's dtype, on x's device"
    if not isinstance(shift, Tensor):
        raise TypeError(f"{op}: expected {expected}; got {type(shift).__name__}")
    fits = shift.dim() == 2 and shift.shape[1] == x.shape[2] and shift.shape[0] in (1, x.shape[0])
    if not fits or not last_contiguous(shift) or shift.device != x.device:
        raise shape_error(op, expected, shift, x)
    if shift.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"{op}: expected {expected}; got {shift.dtype}")


def _fake(x, groups, weight, bias, shift=None, eps=1e-5, silu=False, room=0):
    return torch.empty(*x.shape[:2], x.shape[2] + room, dtype=x.dtype, device=x.device)


@register(fake=_fake)
def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    room: int = 0,
) -> Tensor:
    """``z = x[r] + shift[r]``, ``out[r] = (z - mean) / sqrt(variance + eps) · weight + bias``

    Mean and variance are those of a row's tokens and of the ``C / groups`` channels of a group.
    With ``silu``, ``out · σ(out)``. Accumulates in float32 and rounds once. No autograd.

    Args:
        x: Images, channels last. [rows, tokens, C], last dimension contiguous.
        groups: Divides C.
        weight, bias: float32 or x's dtype. [C].
        shift: float32 or x's dtype, last dimension contiguous. [rows or 1, C].
        room: Columns behind C that are left free, for what the next product also reads.

    Returns:
        [rows, tokens, C + room], contiguous.
    """
    op = "group_norm"
    _check(op, x, groups, weight, bias, shift, room)
    backend = pick(op, x, ("cpu", "cuda"))
    full = all(t is None or t.dtype is torch.float32 for t in (weight, bias, shift))
    if backend == "torch" or (backend == "cpu" and (room or not full)):
        return reference.group_norm(x, groups, weight, bias, shift, eps, silu, room)
    out = _fake(x, groups, weight, bias, room=room)
    rows, tokens, C = x.shape
    chunks, moments = 0, None
    if backend == "cuda":
        chunks = _chunks(tokens, C)
        moments = torch.empty(rows, chunks, groups, 2, dtype=torch.float32, device=x.device)
    elif shift is not None:
        shift = shift.expand(rows, C).contiguous()
    tables = (0 if t is None else t.data_ptr() for t in (shift, weight, bias, moments))
    steps = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    strides = *x.stride()[:2], C + room, steps
    kinds = [DTYPES[t.dtype] for t in (x, weight, weight if shift is None else shift)]
    sizes = rows, tokens, C, groups, chunks
    launch(op, backend, x, out.data_ptr(), x.data_ptr(), *tables, sizes, strides, eps, silu, kinds)
    return out


def _chunks(tokens: int, C: int) -> int:
    """Parts of a row's tokens, none of them empty."""
    wanted = min(MOST_CHUNKS, tokens // FEWEST_TOKENS, BLOCKS // max(1, -(-C // SPAN)))
    return max(1, -(-tokens // max(1, -(-tokens // max(1, wanted)))))
