"""Folded weights W' = W + Σ scale B A by layer and adapter subset, kept across calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..ops.tensors import fingerprint
from .folded import FoldedLayer
from .peft import AdaptedLayer
from .slab import pack

__all__ = ["FoldSlot", "Folds"]

# Name of a layer, and those adapters of a subset that touch it, in order; or, in the layer's stack,
# the place of the subset.
FoldSlot = tuple[str, tuple[str, ...] | int]


@dataclass(frozen=True)
class _Fold:
    key: tuple
    tensors: tuple[Tensor, ...]  # kept alive: the key holds their identities
    weight: Tensor


class Folds:
    """One weight per layer and subset, built once for every method and call that needs it.

    Each is checked when asked for: the base weight and the subset's own adapters, by identity,
    version, contents and scale. The run in progress keeps all of its own; the others go when one
    of their adapters is no longer loaded, or, the longest unused first, where memory ends. Those of
    a stack lie side by side in memory that stays: what is stale is folded anew in its place.
    """

    def __init__(self) -> None:
        self._folds: dict[FoldSlot, _Fold] = {}  # the last used ones last
        self._stacks: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(_size(fold.weight) for fold in self._folds.values())

    def make_room(
        self, wanted: Mapping[FoldSlot, int], limit: int, loaded: Collection[str]
    ) -> None:
        """Drop folds until those ``wanted`` (slot -> bytes) and the rest take at most ``limit``."""
        total = sum(wanted.values())
        for slot in [slot for slot in reversed(self._folds) if slot not in wanted]:
            total += _size(self._folds[slot].weight)
            in_stack = isinstance(slot[1], int)
            if total > limit or in_stack or not loaded.issuperset(slot[1]):
                total -= _size(self._folds.pop(slot).weight)
        stacked = {layer for layer, place in self._folds if isinstance(place, int)}
        self._stacks = {layer: s for layer, s in self._stacks.items() if layer in stacked}

    def layer(
        self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float, stacked: bool
    ) -> FoldedLayer:
        """The layer with each subset folded in, ``scale`` times as strong.

        ``subsets`` name adapters of the layer alone; one may be empty.
        """
        if stacked:
            return FoldedLayer(layer.base, self._stack(layer, subsets, scale))
        base = layer.base.weight.detach()  # one object: rows that share a weight run together
        weights = [self._apart(layer, s, scale) if s else base for s in subsets]
        return FoldedLayer(layer.base, weights)

    def _apart(self, layer: AdaptedLayer, members: tuple[str, ...], scale: float) -> Tensor:
        slot: FoldSlot = (layer.name, members)
        key, tensors = _key(layer, members, scale)
        fold = self._folds.pop(slot, None)
        if fold is None or fold.key != key:
            (weight,) = _fold(layer, [members], scale)
            fold = _Fold(key, tensors, weight)
        self._folds[slot] = fold
        return fold.weight

    @torch.no_grad()
    def _stack(
        self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float
    ) -> Tensor:
        """[S, N, K...]"""
        base, stack = layer.base.weight.detach(), self._stacks.get(layer.name)
        shape, kind = (len(subsets), *base.shape), (base.dtype, base.device)
        fits = stack is not None and stack.shape == shape and (stack.dtype, stack.device) == kind
        if not fits:
            stack = self._stacks[layer.name] = base.new_empty(shape)
        stale = []
        for i, members in enumerate(subsets):
            key, tensors = _key(layer, members, scale)
            fold = self._folds.get((layer.name, i))
            if not fits or fold is None or fold.key != key:
                self._folds[layer.name, i] = _Fold(key, tensors, stack[i])
                stale.append(i)
        folded = [i for i in stale if subsets[i]]
        for i in set(stale).difference(folded):
            stack[i].copy_(base)
        for i, weight in zip(
            folded, _fold(layer, [subsets[i] for i in folded], scale), strict=True
        ):
            stack[i].copy_(weight)
        return stack

    def clear(self) -> None:
        """Drop every fold."""
        self._folds, self._stacks = {}, {}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _key(
    layer: AdaptedLayer, members: tuple[str, ...], scale: float
) -> tuple[tuple, tuple[Tensor, ...]]:
    """What a fold is made of, and the tensors that have to live while the key is compared."""
    adapters = [layer.adapters[name] for name in members]
    tensors = (layer.base.weight, *(t for adapter in adapters for t in (adapter.a, adapter.b)))
    contents = tuple((adapter.scaling, adapter.contents) for adapter in adapters)
    return (scale, layer.contents, contents, fingerprint(*tensors)), tensors


@torch.no_grad()
def _fold(
    layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float
) -> Sequence[Tensor]:
    """As the base weight, which stays pristine."""
    if not subsets:
        return ()
    pristine = layer.base.weight.detach()
    slab = pack(layer, subsets, scale)
    tables = slab.tables(range(len(subsets)))
    folded = ops.lora_fold(pristine.flatten(1), slab.a, slab.b, slab.slots, *tables)
    return [weight.view(pristine.shape) for weight in folded]
