"""Folded weights W' = W + Σ scale B A by layer and adapter subset, kept across calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..ops.tensors import fingerprint
from .peft import AdaptedLayer
from .slab import pack

__all__ = ["FoldCache", "FoldSlot", "fold_key"]

# Name of a layer, and those adapters of a subset that touch it, in order.
FoldSlot = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Fold:
    key: tuple
    tensors: tuple[Tensor, ...]  # kept alive: the key holds their identities
    weight: Tensor


class FoldCache:
    """One weight per layer and subset, built once for every method and call that needs it.

    Each is checked when asked for: the base weight and the subset's own adapters, by identity,
    version, contents and scale. The run in progress keeps all of its own; the others go when one
    of their adapters is no longer loaded, or, the longest unused first, where memory ends.
    """

    def __init__(self) -> None:
        self._folds: dict[FoldSlot, _Fold] = {}  # the last used ones last

    @property
    def bytes(self) -> int:
        return sum(_size(fold.weight) for fold in self._folds.values())

    def make_room(self, wanted: Mapping[FoldSlot, int], limit: int, loaded: Collection[str]):
        """Drop folds until those ``wanted`` (slot -> bytes) and the rest take at most ``limit``."""
        total = sum(wanted.values())
        others = [slot for slot in self._folds if slot not in wanted]
        for slot in reversed(others):
            total += _size(self._folds[slot].weight)
            if total > limit or not loaded.issuperset(slot[1]):
                total -= _size(self._folds.pop(slot).weight)

    def weight(self, layer: AdaptedLayer, members: tuple[str, ...], scale: float) -> Tensor:
        """The layer's weight with these adapters folded in, each ``scale`` times as strong."""
        slot: FoldSlot = (layer.name, members)
        key, tensors = fold_key(layer, members, scale)
        fold = self._folds.pop(slot, None)
        if fold is None or fold.key != key:
            fold = _Fold(key, tensors, _fold(layer, members, scale))
        self._folds[slot] = fold
        return fold.weight

    def clear(self) -> None:
        """Drop every fold."""
        self._folds = {}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def fold_key(
    layer: AdaptedLayer, members: tuple[str, ...], scale: float
) -> tuple[tuple, tuple[Tensor, ...]]:
    """What a fold was made of, and the tensors that have to live while the key is compared."""
    adapters = [layer.adapters[name] for name in members]
    tensors = (layer.base.weight, *(t for adapter in adapters for t in (adapter.a, adapter.b)))
    contents = tuple((adapter.scaling, adapter.contents) for adapter in adapters)
    return (scale, contents, fingerprint(*tensors)), tensors


@torch.no_grad()
def _fold(layer: AdaptedLayer, members: tuple[str, ...], scale: float) -> Tensor:
    """As the base weight, which stays pristine. Its own memory: it may be dropped by itself."""
    pristine = layer.base.weight.detach()
    slab = pack(layer, [members], scale)
    folded = ops.lora_fold(pristine.flatten(1), slab.a, slab.b, slab.slots, *slab.tables([0]))
    return folded.view(pristine.shape)
