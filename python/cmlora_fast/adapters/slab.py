"""A layer's adapters side by side along the rank, and the tables that give rows their subsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .peft import AdaptedLayer

__all__ = ["Slab", "pack"]


@dataclass(frozen=True)
class Slab:
    """``a`` (ΣR, K), ``b`` (N, ΣR), ``slots`` (S + 1,); (slot, scale) pairs of every subset."""

    a: Tensor
    b: Tensor
    slots: Tensor
    members: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.a, self.b, self.slots))

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
            torch.tensor(ptr, dtype=torch.int32, device=device),
            torch.tensor(slots, dtype=torch.int32, device=device),
            torch.tensor(scales, dtype=torch.float32, device=device),
        )


@torch.no_grad()
def pack(layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float) -> Slab:
    """The layer's adapters that ``subsets`` name, as one slab in its base weight's dtype and place.

    A convolution's ``a`` is (R, C_in * kh * kw), its ``b`` (N, R).
    """
    weight = layer.base.weight
    names = [name for name in layer.adapters if any(name in subset for subset in subsets)]
    dtype = weight.dtype if weight.is_floating_point() else layer.adapters[names[0]].a.dtype
    kind = {"dtype": dtype, "device": weight.device}
    a = torch.cat([layer.adapters[name].a.detach().flatten(1).to(**kind) for name in names])
    b = torch.cat([layer.adapters[name].b.detach().flatten(1).to(**kind) for name in names], dim=1)
    ranks = [layer.adapters[name].a.shape[0] for name in names]
    slots = torch.tensor([0, *ranks], device=weight.device).cumsum(0).to(torch.int32)
    members = tuple(
        tuple(
            (names.index(name), layer.adapters[name].scaling * scale)
            for name in subset
            if name in layer.adapters
        )
        for subset in subsets
    )
    return Slab(a, b.contiguous(), slots, members)
