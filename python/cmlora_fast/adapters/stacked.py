"""Folded weights side by side in memory that stays: for devices that replay what they ran once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .fold_cache import fold_key
from .folded import writes_in_place
from .peft import AdaptedLayer
from .slab import pack

__all__ = ["FoldStacks", "StackedLayer"]

# From so many samples and tokens on, a product per subset with the bias inside costs less than one
# strided batch that needs the bias spread over its output first. From rooflines, not measured.
SINGLE_TOKENS = 1024


class StackedLayer:
    """One weight per subset of a Linear or Conv2d layer, [S, N, K...]; rows run with theirs."""

    def __init__(self, base: nn.Module, weights: Tensor):
        self.base, self.weights = base, weights

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads."""
        return (self.weights,)

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output."""
        if x.shape[0] == 1 and rows.count > 1:
            x = x.expand(rows.count, *x.shape[1:])
        weights, segments = self.weights, rows.segments
        if rows.subsets is not None:
            weights = weights.index_select(0, rows.subsets)
        if len(segments) == 1:
            return self._run(x, weights[segments[0][0]])
        if isinstance(self.base, nn.Linear) and writes_in_place(x, weights):
            return self._linears(x, weights, segments)
        return torch.cat([self._run(x[start:stop], weights[s]) for s, start, stop in segments])

    def _run(self, x: Tensor, weight: Tensor) -> Tensor:
        base = self.base
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, base.bias)
        at = (base.stride, base.padding, base.dilation, base.groups)
        return F.conv2d(x, weight, base.bias, *at)

    def _linears(self, x: Tensor, weights: Tensor, segments) -> Tensor:
        x, bias = x.contiguous(), self.base.bias
        y = x.new_empty(*x.shape[:-1], self.base.out_features)
        few = y[: segments[0][2]].numel() < SINGLE_TOKENS * y.shape[-1]
        if _is_a_batch(segments) and (bias is None or few):
            first, count = segments[0][0], len(segments)
            source, target = (t.view(count, -1, t.shape[-1]) for t in (x, y))
            chosen = weights[first : first + count].mT
            if bias is None:
                torch.bmm(source, chosen, out=target)
            else:
                torch.baddbmm(bias, source, chosen, out=target)
            return y
        for subset, start, stop in segments:
            source, target = x[start:stop].flatten(0, -2), y[start:stop].flatten(0, -2)
            if bias is None:
                torch.mm(source, weights[subset].t(), out=target)
            else:
                torch.addmm(bias, source, weights[subset].t(), out=target)
        return y


def _is_a_batch(segments) -> bool:
    """Equally long segments of consecutive subsets."""
    first, length = segments[0][0], segments[0][2]
    return all(
        (subset, stop - start) == (first + i, length)
        for i, (subset, start, stop) in enumerate(segments)
    )


@dataclass
class _Stack:
    weights: Tensor  # [S, N, K...]
    keys: list[tuple]
    tensors: list[tuple[Tensor, ...]]  # kept alive: the keys hold their identities


class FoldStacks:
    """One stack per layer, checked at every call; what is stale is folded anew in its place."""

    def __init__(self) -> None:
        self._stacks: dict[str, _Stack] = {}

    @property
    def bytes(self) -> int:
        stacks = (stack.weights for stack in self._stacks.values())
        return sum(weights.numel() * weights.element_size() for weights in stacks)

    def keep_only(self, layers: Collection[str]) -> None:
        """Drop the stacks of all other layers."""
        self._stacks = {name: s for name, s in self._stacks.items() if name in layers}

    @torch.no_grad()
    def weights(
        self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float
    ) -> Tensor:
        """[S, N, K...]: the layer's weight with each subset folded in, ``scale`` times as strong.

        ``subsets`` name adapters of the layer alone; one may be empty.
        """
        base = layer.base.weight.detach()
        keyed = [fold_key(layer, members, scale) for members in subsets]
        keys, tensors = [key for key, _ in keyed], [kept for _, kept in keyed]
        stack = self._stacks.get(layer.name)
        shape = (len(subsets), *base.shape)
        like = stack is not None and stack.weights.shape == shape
        like = like and stack.weights.dtype is base.dtype and stack.weights.device == base.device
        if not like:
            stack = _Stack(torch.empty(shape, dtype=base.dtype, device=base.device), [], [])
            self._stacks[layer.name] = stack
        old = stack.keys or [None] * len(keys)
        stale = [i for i, (new, key) in enumerate(zip(keys, old, strict=True)) if new != key]
        if stale:
            slab = pack(layer, subsets, scale)
            tables = slab.tables(stale)
            folded = ops.lora_fold(base.flatten(1), slab.a, slab.b, slab.slots, *tables)
            for i, weight in zip(stale, folded, strict=True):
                stack.weights[i].copy_(weight.view_as(base))
        stack.keys, stack.tensors = keys, tensors
        return stack.weights
