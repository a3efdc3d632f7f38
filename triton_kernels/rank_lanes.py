"""A row's adapters side by side: which rank of the slabs each lane of a tile stands for."""

import triton
import triton.language as tl
from torch import Tensor

MOST_LANES = 128  # of a pass; a tile of 128 tokens has no registers for more
TABLE = 16  # slots, and entries, that are looked at together


@triton.jit
def row_lanes(
    slots_ptr,  # [S + 1]
    row_slot_ptr,  # [nnz]
    row_scale_ptr,  # [nnz]
    S,
    start,
    end,
    first,
    BLOCK_R: tl.constexpr,
    TABLE: tl.constexpr,
):
    """Of the lanes from ``first`` on: rank in the slabs, whether it is the row's, and scale; of the
    row: its number of lanes.

    Eight lanes in a row stand for ranks that begin on a multiple of 8, -8 past the last, so that
    they are loaded at once; where an adapter does not begin or end there, its neighbours' ranks
    are among them. Lanes follow the slots, not the entries: an adapter that a row lists twice has
    its lanes once, with the sum of the scales.
    """
    lane = first + tl.arange(0, BLOCK_R)
    rank = tl.full([BLOCK_R], -8, tl.int32)
    owned = tl.zeros([BLOCK_R], tl.int32)
    scale = tl.zeros([BLOCK_R], tl.float32)
    total = 0
    for first_slot in tl.range(0, S, TABLE, num_stages=1):
        slot = first_slot + tl.arange(0, TABLE)
        base = tl.load(slots_ptr + slot, mask=slot < S, other=0)
        stop = tl.load(slots_ptr + slot + 1, mask=slot < S, other=0)
        carried = tl.zeros([TABLE], tl.int32)
        factor = tl.zeros([TABLE], tl.float32)
        for first_entry in tl.range(start, end, TABLE, num_stages=1):
            entry = first_entry + tl.arange(0, TABLE)
            listed = tl.load(row_slot_ptr + entry, mask=entry < end, other=-1)
            factors = tl.load(row_scale_ptr + entry, mask=entry < end, other=0.0)
            same = slot[:, None] == listed[None, :]
            carried += tl.sum(same.to(tl.int32), axis=1)
            factor += tl.sum(tl.where(same, factors[None, :], 0.0), axis=1)
        octets = tl.where((carried > 0) & (base < stop), (stop + 7) // 8 - base // 8, 0)
        last_lane = total + 8 * tl.cumsum(octets, axis=0)
        first_lane = last_lane - 8 * octets
        inside = (lane[:, None] >= first_lane[None, :]) & (lane[:, None] < last_lane[None, :])
        ranks = (base // 8 * 8 - first_lane)[None, :] + lane[:, None]
        own = inside & (ranks >= base[None, :]) & (ranks < stop[None, :])
        rank = tl.maximum(rank, tl.max(tl.where(inside, ranks, -8), axis=1))
        owned += tl.sum(own.to(tl.int32), axis=1)
        scale += tl.sum(tl.where(own, factor[None, :], 0.0), axis=1)
        total += 8 * tl.sum(octets, axis=0)
    return rank, owned, scale, total


def most_lanes(total_rank: int, adapters: int) -> int:
    """Lanes that no row exceeds: at both its ends an adapter may have 7 that are not its own."""
    return total_rank + 14 * adapters


def block_of_ranks(a: Tensor, slots: Tensor, row_ptr: Tensor, row_slot: Tensor) -> int:
    """Lanes that hold a usual row's ranks. From sizes alone: what the tables say is on the device.

    Rows with more ranks take several passes.
    """
    adapters = max(1, slots.numel() - 1)
    per_row = min(adapters, triton.cdiv(row_slot.numel(), max(1, row_ptr.numel() - 1)))
    usual = triton.cdiv(a.shape[0] * per_row, adapters)
    return min(MOST_LANES, max(16, triton.next_power_of_2(usual)))  # tl.dot needs 16
