"""Twins of the ops that apply or fold low-rank adapters.

``table``: slots, row_ptr, row_slot, row_scale.
"""

import itertools

import torch
from torch import Tensor

from ..tensors import accumulator

__all__ = [
    "lora_delta",
    "lora_delta_",
    "lora_fold",
    "lora_linear",
    "scale_ranks_",
]


def scale_ranks_(h: Tensor, scales: Tensor) -> None:
    dtype, factors = accumulator(h.dtype), scales[:, None]
    h.copy_((h.to(dtype) * factors.to(dtype)).masked_fill_(factors == 0, 0))


def lora_delta_(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *table: Tensor) -> None:
    dtype = accumulator(y.dtype)
    for row, segments in enumerate(_segments(*table)):
        if not segments:
            continue
        total, x_row = y[row].to(dtype), x[row].to(dtype)  # y[row] itself in float32
        for first, last, scale in segments:
            hidden = x_row @ a[first:last].to(dtype).T
            total.addmm_(hidden, b[:, first:last].to(dtype).T, alpha=scale)
        if y.dtype != dtype:
            y[row].copy_(total)


def lora_delta(x: Tensor, a: Tensor, b: Tensor, *table: Tensor) -> Tensor:
    dtype = accumulator(x.dtype)
    deltas = []
    for row, segments in enumerate(_segments(*table)):
        x_row = x[row].to(dtype)
        total = x_row.new_zeros(x.shape[1], b.shape[0])
        for first, last, scale in segments:
            hidden = x_row @ a[first:last].to(dtype).T
            total = total + scale * (hidden @ b[:, first:last].to(dtype).T)
        deltas.append(total.to(x.dtype))
    return torch.stack(deltas) if deltas else x.new_zeros(0, x.shape[1], b.shape[0])


def lora_fold(w: Tensor, a: Tensor, b: Tensor, *table: Tensor) -> Tensor:
    dtype = accumulator(w.dtype)
    folded = w.new_empty(table[1].numel() - 1, *w.shape)
    for row, segments in enumerate(_segments(*table)):
        total = w.to(dtype, copy=True)
        for first, last, scale in segments:
            total.addmm_(b[:, first:last].to(dtype), a[first:last].to(dtype), alpha=scale)
        folded[row] = total
    return folded


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *table: Tensor
) -> Tensor:
    dtype = accumulator(x.dtype)
    base = torch.nn.functional.linear(
        x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype)
    )
    lora_delta_(base, x.to(dtype), a.to(dtype), b.to(dtype), *table)
    return base.to(x.dtype)


def _segments(slots, row_ptr, row_slot, row_scale) -> list[list[tuple[int, int, float]]]:
    """Per row: first rank, end of ranks, scale of each adapter; adapters of rank 0 left out."""
    slots, row_ptr = slots.tolist(), row_ptr.tolist()
    entries = [
        (slots[slot], slots[slot + 1], scale)
        for slot, scale in zip(row_slot.tolist(), row_scale.tolist(), strict=True)
    ]
    return [
        [entry for entry in entries[start:end] if entry[0] < entry[1]]
        for start, end in itertools.pairwise(row_ptr)
    ]
