"""A row's adapters side by side: which rank of the slabs each lane of a tile stands for."""

import triton
import triton.language as tl
from torch import Tensor

MOST_LANES = 64  # of a pass; 128 spill registers, see benchmarks/gpu_build.py


@triton.jit
def total_rank(slots_ptr, row_slot_ptr, start, end):
    total = 0
    for entry in range(start, end):
        slot = tl.load(row_slot_ptr + entry)
        total += tl.load(slots_ptr + slot + 1) - tl.load(slots_ptr + slot)
    return total


@triton.jit
def rank_lanes(slots_ptr, row_slot_ptr, row_scale_ptr, start, end, first, BLOCK_R: tl.constexpr):
    """Rank in the slabs and scale of the lanes from ``first`` on."""
    lane = first + tl.arange(0, BLOCK_R)
    rank = tl.zeros([BLOCK_R], tl.int32) - 1  # -1: past the last adapter
    scale = tl.zeros([BLOCK_R], tl.float32)
    begin = 0
    for entry in range(start, end):
        slot = tl.load(row_slot_ptr + entry)
        base = tl.load(slots_ptr + slot)
        stop = begin + tl.load(slots_ptr + slot + 1) - base
        inside = (lane >= begin) & (lane < stop)
        rank = tl.where(inside, base + lane - begin, rank)
        scale = tl.where(inside, tl.load(row_scale_ptr + entry), scale)
        begin = stop
    return rank, scale


def block_of_ranks(a: Tensor, slots: Tensor, row_ptr: Tensor, row_slot: Tensor) -> int:
    """Lanes that hold a usual row's ranks. From sizes alone: what the tables say is on the device.

    Rows with more ranks take several passes.
    """
    adapters = max(1, slots.numel() - 1)
    per_row = min(adapters, triton.cdiv(row_slot.numel(), max(1, row_ptr.numel() - 1)))
    usual = triton.cdiv(a.shape[0] * per_row, adapters)
    return min(MOST_LANES, max(16, triton.next_power_of_2(usual)))  # tl.dot needs 16
