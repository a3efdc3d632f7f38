"""Checks shared by the ops. A failed one names the op, what was expected and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # order of csrc/common/dtype.h


def describe(*tensors: Tensor) -> str:
    """Dtype, shape, strides where they tell something, and device, as error messages give them."""
    return ", ".join(_describe(tensor) for tensor in tensors)


def shape_error(op: str, expected: str, *tensors: Tensor) -> ValueError:
    return ValueError(f"{op}: expected {expected}; got {describe(*tensors)}")


def check_floats(op: str, names: str, *tensors: Tensor) -> None:
    """All of one supported dtype, on one device."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: expected tensors {names}; got {type(tensor).__name__}")
    dtype, device = tensors[0].dtype, tensors[0].device
    for tensor in tensors:
        if tensor.dtype is not dtype or dtype not in DTYPES:
            raise TypeError(
                f"{op}: expected {names} of one dtype, float32, bfloat16 or float16; "
                f"got {describe(*tensors)}"
            )
        if tensor.device != device:
            raise shape_error(op, f"{names} on one device", *tensors)


def check_table(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """A contiguous table of the given dtype on the given device."""
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype:
        got = describe(tensor) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{op}: expected {name} as {_name(dtype)} tensor; got {got}")
    if tensor.device != device or not tensor.is_contiguous():
        raise shape_error(op, f"{name} contiguous and on {device}", tensor)


def check_vector(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """[C] for a tensor [..., C]: float32 or its dtype, contiguous, on its device."""
    dtype = like.dtype if getattr(tensor, "dtype", None) is like.dtype else torch.float32
    check_table(op, name, tensor, dtype, like.device)
    if tensor.shape != like.shape[-1:]:
        raise shape_error(op, f"{name} for [..., C]", tensor, like)


def check_room(op: str, room: int) -> None:
    if not isinstance(room, int) or isinstance(room, bool) or room < 0:
        raise ValueError(f"{op}: expected room, columns left free, of 0 or more; got {room!r}")


def check_row_table(
    op: str, like: Tensor, rows: int | None, total_rank: int, tables: Sequence[Tensor]
) -> "_C.RowTable | None":
    """The four tensors of a row table (``slots, row_ptr, row_slot, row_scale``) for the kernels.

    Their contents are checked where reading them costs no synchronisation, on the CPU.
    """
    slots, row_ptr, row_slot, row_scale = tables
    device = like.device
    check_table(op, "slots [S + 1]", slots, torch.int32, device)
    check_table(op, "row_ptr [rows + 1]", row_ptr, torch.int32, device)
    check_table(op, "row_slot [nnz]", row_slot, torch.int32, device)
    check_table(op, "row_scale [nnz]", row_scale, torch.float32, device)
    if not (slots.dim() == row_ptr.dim() == row_slot.dim() == row_scale.dim() == 1):
        raise shape_error(op, "slots, row_ptr, row_slot, row_scale of one dimension", *tables)
    # numel(), as len() of a tensor takes half a microsecond
    slot_count, row_count, entries = slots.numel() - 1, row_ptr.numel() - 1, row_slot.numel()
    if slot_count < 0 or row_count < 0 or (rows is not None and row_count != rows):
        expected = "[rows + 1]" if rows is None else f"[{rows + 1}], one row more than x has"
        raise shape_error(op, f"slots [S + 1], row_ptr {expected}", slots, row_ptr)
    if row_scale.numel() != entries:
        raise shape_error(op, "row_slot and row_scale of one length", row_slot, row_scale)
    if not (like.is_cpu or like.is_cuda):
        return None
    counts = slot_count, row_count, entries, total_rank
    table = _C.RowTable([table.data_ptr() for table in tables], counts)
    if like.is_cpu:
        table.check(op)
    return table


def addressed(*tensors: Tensor) -> list:
    """What most kernels are told of tensors: address and strides of each."""
    return [told for tensor in tensors for told in (tensor.data_ptr(), tensor.stride())]


def last_contiguous(*tensors: Tensor) -> bool:
    return all(tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 for tensor in tensors)


def overlaps_itself(tensor: Tensor) -> bool:
    """Two elements share memory, as far as strides of 0 tell."""
    return 0 in tensor.stride() and any(
        tensor.shape[dim] > 1 and tensor.stride(dim) == 0 for dim in range(tensor.dim())
    )


def check_no_grad(op: str, instead: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{op}: works in place and records no gradient; {instead}")


def wrote(tensor: Tensor) -> None:
    """Tell autograd of a write that went past torch."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _describe(tensor: Tensor) -> str:
    text = f"{_name(tensor.dtype)} {tuple(tensor.shape)}"
    if not tensor.is_contiguous():
        text += f" strides {tensor.stride()}"
    return text if tensor.is_cpu else f"{text} on {tensor.device}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
