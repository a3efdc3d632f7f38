"""A layer's adapters side by side along the rank, and the tables that give rows their subsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..ops.tensors import upload
from .peft import AdaptedLayer

__all__ = ["Slab", "pack"]


@dataclass(frozen=True)
class Slab:
    """``a`` (ΣR, K), ``b`` (N, ΣR), ``slots`` (S + 1,); (slot, scale) pairs of every subset.

    ``ranks`` of the slots on the host. With a spare slot the last one has none.
    """

    a: Tensor
    b: Tensor
    slots: Tensor
    members: tuple[tuple[tuple[int, float], ...], ...]
    ranks: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.a, self.b, self.slots))

    @torch.inference_mode(False)  # kept for later runs, which may need gradients
    def tables(self, subset_of_row: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """``row_ptr``, ``row_slot``, ``row_scale`` for rows that carry these subsets."""
        ptr, slots, scales = [0], [], []
        for subset in subset_of_row:
            for slot, scale in self.members[subset]:
                slots.append(slot)
                scales.append(scale)
            ptr.append(len(slots))
        device = self.a.device
        return (
            upload(ptr, torch.int32, device),
            upload(slots, torch.int32, device),
            upload(scales, torch.float32, device),
        )

    def tables_at(self, subset_of_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows whose subsets the device knows, int32. Needs a spare slot."""
        entries = self._entries.index_select(1, subset_of_row)  # [2, rows, E]
        rows, each = entries.shape[1:]
        slots, scales = entries.flatten(1)
        return self._row_ptr(rows, each), slots, scales.view(torch.float32)

    @cached_property
    def rank_scales(self) -> Tensor:
        """(subsets, ΣR) float32: the scale of every rank, 0 where a subset has no part in it."""
        scales = torch.zeros(len(self.members), self.a.shape[0])
        starts = [sum(self.ranks[:slot]) for slot in range(len(self.ranks))]
        for subset, members in enumerate(self.members):
            for slot, scale in members:
                scales[subset, starts[slot] : starts[slot] + self.ranks[slot]] += scale
        return scales.to(self.a.device)

    @cached_property
    def _entries(self) -> Tensor:
        """Slots, and the bits of their scales, of every subset; spare ones to equal length."""
        each = max(1, *map(len, self.members))
        slots = torch.full((len(self.members), each), len(self.ranks) - 1, dtype=torch.int32)
        scales = torch.zeros(len(self.members), each)
        for subset, members in enumerate(self.members):
            for place, (slot, scale) in enumerate(members):
                slots[subset, place], scales[subset, place] = slot, scale
        return torch.stack([slots, scales.view(torch.int32)]).to(self.a.device)

    def _row_ptr(self, rows: int, each: int) -> Tensor:
        made = self._row_ptrs.get(rows)
        if made is None:
            made = torch.arange(0, rows * each + 1, each, dtype=torch.int32)
            made = self._row_ptrs[rows] = made.to(self.a.device)
        return made

    @cached_property
    def _row_ptrs(self) -> dict[int, Tensor]:
        return {}


@torch.no_grad()
def pack(
    layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float, spare: bool = False
) -> Slab:
    """The layer's adapters that ``subsets`` name, as one slab in its base weight's dtype and place.

    They are plain LoRA.

    A convolution's ``a`` is (R, C_in * kh * kw), its ``b`` (N, R). ``spare``: one more slot,
    without ranks.
    """
    weight = layer.base.weight
    names = [name for name in layer.adapters if any(name in subset for subset in subsets)]
    dtype = weight.dtype if weight.is_floating_point() else layer.adapters[names[0]].a.dtype
    kind = {"dtype": dtype, "device": weight.device}
    a = torch.cat([layer.adapters[name].a.detach().flatten(1).to(**kind) for name in names])
    b = torch.cat([layer.adapters[name].b.detach().flatten(1).to(**kind) for name in names], dim=1)
    ranks = [layer.adapters[name].a.shape[0] for name in names] + [0] * spare
    slots = torch.tensor([0, *ranks], device=weight.device).cumsum(0).to(torch.int32)
    members = tuple(
        tuple(
            (names.index(name), layer.adapters[name].scaling * scale)
            for name in subset
            if name in layer.adapters
        )
        for subset in subsets
    )
    return Slab(a, b.contiguous(), slots, members, tuple(ranks))
