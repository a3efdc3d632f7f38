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
        if tensor.is_neg() or not tensor.data_ptr():
            _check_memory(op, names, tensor)


def check_table(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """A contiguous table of the given dtype on the given device."""
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype:
        got = describe(tensor) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{op}: expected {name} as {_name(dtype)} tensor; got {got}")
    if tensor.device != device or not tensor.is_contiguous():
        raise shape_error(op, f"{name} contiguous and on {device}", tensor)
    if tensor.is_neg() or not tensor.data_ptr():
        _check_memory(op, name, tensor)


def _check_memory(op: str, names: str, tensor: Tensor) -> None:
    """A kernel reads memory: it has to be there, with the numbers as they are."""
    if tensor.is_neg():
        raise shape_error(op, f"{names} with their signs in memory (tensor.resolve_neg())", tensor)
    if tensor.numel() and not tensor.is_meta:
        raise shape_error(op, f"{names} that have memory", tensor)


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


def check_indices(
    op: str, name: str, table: Tensor, begin: int, end: int, distinct: bool = False
) -> None:
    """Entries of an int32 table on the CPU in ``begin`` .. ``end - 1``, each once if so wanted."""
    if table.numel():
        expected = f"{op}: expected {name}"
        _C.check_indices(expected, table.data_ptr(), table.numel(), begin, end, distinct)


def check_written(op: str, name: str, out: Tensor, *others: Tensor) -> None:
    """What is written in place: every element in memory of its own, and none of the others'."""
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{op}: {name} was made in torch.inference_mode; expected one that may be written to "
            "outside it (a clone)"
        )
    if not out.is_contiguous() and out.data_ptr() and _overlaps_itself(out):
        raise shape_error(op, f"{name} without overlap: every element in memory of its own", out)
    for other in others:
        if _overlap(out, other):
            raise shape_error(op, f"{name} without overlap with what is read", out, other)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements share memory."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    dims = sorted((stride, size) for stride, size in pairs if size > 1)
    reach = 0  # of the dimensions before: past it, the next one's elements are new
    for stride, size in dims:
        if stride <= reach:
            return bool(tensor.numel()) and len(_places(tensor).unique()) < tensor.numel()
        reach += stride * (size - 1)
    return False


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether some element of one shares memory with one of the other."""
    (start, end), (other, last) = _span(first), _span(second)
    if end <= other or last <= start or not start:  # no address: of the meta device
        return False
    if not (first.numel() and second.numel()):
        return False
    if first.is_contiguous() and second.is_contiguous():
        return True
    size = first.element_size()
    if (other - start) % size:
        return True
    places = _places(second) + (other - start) // size
    return bool(torch.isin(_places(first), places).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte, and the one past the last."""
    start, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return start, start + tensor.numel() * size
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return start, start + size * (1 + sum(stride * (n - 1) for stride, n in pairs if n))


def _places(tensor: Tensor) -> Tensor:
    """Offset of every element from the first."""
    places = torch.zeros(1, dtype=torch.int64)
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        places = (places[:, None] + stride * torch.arange(size)).flatten()
    return places


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
