"""Folded weights W' = W + Σ scale B A by layer and adapter subset, kept across calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.tensors import fingerprint
from .folded import FoldedLayer
from .forms import composed
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
    shift: Tensor | None  # what comes to the base's bias


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
        self._joined: dict[tuple[str, ...], Tensor] = {}
        self._places: dict[str, Tensor] = {}
        self._shifts: dict[str, Tensor] = {}

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

    @torch.no_grad()
    def place(self, joins: Sequence[tuple[AdaptedLayer, ...]], subsets: int) -> None:
        """Let the stacks of linear layers that are joined lie behind one another: a product each
        for all of them, see ``joined``.
        """
        kept, self._joined, self._places = self._joined, {}, {}
        for layers in joins:
            weights = [layer.base.weight.detach() for layer in layers]
            names, sizes = tuple(layer.name for layer in layers), [len(w) for w in weights]
            shape, like = (subsets, sum(sizes), weights[0].shape[1]), weights[0]
            stack = kept.get(names)
            if stack is None or not _is_like(stack, shape, like):
                stack = like.new_empty(shape)
            self._joined[names] = stack
            self._places |= zip(names, stack.split(sizes, dim=1), strict=True)

    def joined(self) -> dict[tuple[str, ...], FoldedLayer]:
        """The layers of ``place`` as one, by their names."""
        return {
            names: FoldedLayer(nn.Linear(*stack.shape[:0:-1], bias=False, device="meta"), stack)
            for names, stack in self._joined.items()
        }

    def layer(
        self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float, stacked: bool
    ) -> FoldedLayer:
        """The layer with each subset folded in, ``scale`` times as strong.

        ``subsets`` name adapters of the layer alone; one may be empty.
        """
        if stacked:
            stack = self._stack(layer, subsets, scale)
            folds = [self._folds[layer.name, i] for i in range(len(subsets))]
            return FoldedLayer(layer.base, stack, self._shifted(layer, folds))
        base = layer.base.weight.detach()  # one object: rows that share a weight run together
        folds = [self._apart(layer, s, scale) if s else None for s in subsets]
        weights = [base if fold is None else fold.weight for fold in folds]
        return FoldedLayer(layer.base, weights, self._shifted(layer, folds))

    def _shifted(self, layer: AdaptedLayer, folds: Sequence[_Fold | None]) -> Tensor | None:
        """[S, N], in memory that stays."""
        if all(adapter.bias is None for adapter in layer.adapters.values()):
            return None
        weight = layer.base.weight
        shifts = weight.new_zeros(len(folds), len(weight), requires_grad=False)
        for shift, fold in zip(shifts, folds, strict=True):
            if fold is not None and fold.shift is not None:
                shift.copy_(fold.shift)
        kept = self._shifts.get(layer.name)
        if kept is None or not _is_like(kept, shifts.shape, shifts):
            kept = self._shifts[layer.name] = shifts
        return kept.copy_(shifts)

    def _apart(self, layer: AdaptedLayer, members: tuple[str, ...], scale: float) -> _Fold:
        slot: FoldSlot = (layer.name, members)
        key, tensors = _key(layer, members, scale)
        fold = self._folds.pop(slot, None)
        if fold is None or fold.key != key:
            ((weight, shift),) = _fold(layer, [members], scale)
            fold = _Fold(key, tensors, weight, shift)
        self._folds[slot] = fold
        return fold

    @torch.no_grad()
    def _stack(
        self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float
    ) -> Tensor:
        """[S, N, K...]"""
        base, stack = layer.base.weight.detach(), self._stacks.get(layer.name)
        shape, place = (len(subsets), *base.shape), self._places.get(layer.name)
        fits = stack is not None and _is_like(stack, shape, base)
        if place is not None:
            fits = fits and stack.data_ptr() == place.data_ptr()
        if not fits:
            stack = self._stacks[layer.name] = _new_stack(shape, base) if place is None else place
        stale = {}
        for i, members in enumerate(subsets):
            key, tensors = _key(layer, members, scale)
            fold = self._folds.get((layer.name, i))
            if not fits or fold is None or fold.key != key:
                stale[i] = key, tensors
        made = _fold(layer, [subsets[i] for i in stale], scale)
        for (i, kept), (weight, shift) in zip(stale.items(), made, strict=True):
            stack[i].copy_(weight)
            self._folds[layer.name, i] = _Fold(*kept, stack[i], shift)
        return stack

    def clear(self) -> None:
        """Drop every fold."""
        self._folds, self._stacks, self._shifts, self._joined, self._places = {}, {}, {}, {}, {}


def _is_like(stack: Tensor, shape: tuple[int, ...], like: Tensor) -> bool:
    kind = stack.dtype, stack.device
    return stack.shape == shape and kind == (like.dtype, like.device)


def _new_stack(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """[S, N, K]; of convolutions [S, N, C, kh, kw], with their channels together."""
    if len(shape) != 5:
        return like.new_empty(shape)
    subsets, N, C, height, width = shape
    return like.new_empty(subsets, N, height, width, C).permute(0, 1, 4, 2, 3)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _key(
    layer: AdaptedLayer, members: tuple[str, ...], scale: float
) -> tuple[tuple, tuple[Tensor, ...]]:
    """What a fold is made of, and the tensors that have to live while the key is compared."""
    adapters = [layer.adapters[name] for name in members]
    tensors = (layer.base.weight, *(t for a in adapters for t in a.tensors.values()))
    contents = tuple((adapter.scaling, adapter.contents) for adapter in adapters)
    return (scale, layer.contents, contents, fingerprint(*tensors)), tensors


@torch.no_grad()
def _fold(
    layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float
) -> list[tuple[Tensor, Tensor | None]]:
    """As the base weight, which stays pristine, and what comes to the bias."""
    pristine = layer.base.weight.detach()
    plain = [s for s in subsets if s and not any(layer.adapters[name].kind for name in s)]
    low_rank = iter(_low_rank(layer, plain, scale, pristine))
    made = []
    for members in subsets:
        if any(layer.adapters[name].kind for name in members):
            ordered = [adapter for name, adapter in layer.adapters.items() if name in members]
            made.append(composed(pristine, ordered, scale))
        else:
            made.append((next(low_rank) if members else pristine, None))
    return made


def _low_rank(
    layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float, pristine: Tensor
) -> Sequence[Tensor]:
    if not subsets:
        return ()
    slab = pack(layer, subsets, scale)
    tables = slab.tables(range(len(subsets)))
    folded = ops.lora_fold(pristine.flatten(1), slab.a, slab.b, slab.slots, *tables)
    return [weight.view(pristine.shape) for weight in folded]
