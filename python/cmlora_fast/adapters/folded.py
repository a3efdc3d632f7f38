"""A layer whose rows run with the folded weight of their adapter subset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.products import conv2d, linear, linear_

__all__ = ["FoldedLayer", "writes_in_place"]


class FoldedLayer:
    """One weight per subset of a Linear or Conv2d layer; rows run with the weight of theirs."""

    def __init__(self, base: nn.Module, weights: Sequence[Tensor]):
        self.base = base
        self.weights = tuple(weights)

    @property
    def apart(self) -> bool:
        """Whether every subset has a weight of its own."""
        return len({id(weight) for weight in self.weights}) == len(self.weights)

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output."""
        if x.shape[0] == 1 and rows.count > 1:
            x = x.expand(rows.count, *x.shape[1:])
        segments = self._merged(rows.segments)
        if len(segments) == 1:
            return self._run(x, segments[0][0])
        if isinstance(self.base, nn.Linear) and writes_in_place(x, self.weights[0]):
            return self._linear_into(x, segments)
        return torch.cat([self._run(x[start:stop], w) for w, start, stop in segments])

    def _merged(self, segments) -> list[tuple[Tensor, int, int]]:
        """(weight, start, stop), with neighbours that share a weight joined."""
        merged: list[tuple[Tensor, int, int]] = []
        for subset, start, stop in segments:
            weight = self.weights[subset]
            if merged and merged[-1][0] is weight:
                start = merged.pop()[1]
            merged.append((weight, start, stop))
        return merged

    def _run(self, x: Tensor, weight: Tensor) -> Tensor:
        base = self.base
        if isinstance(base, nn.Linear):
            return linear(x, weight, base.bias)
        return conv2d(x, weight, base)

    def _linear_into(self, x: Tensor, segments: list[tuple[Tensor, int, int]]) -> Tensor:
        """One product per segment, each written into its slice of the output."""
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.base.out_features)
        for weight, start, stop in segments:
            linear_(y[start:stop], x[start:stop], weight, self.base.bias)
        return y


def writes_in_place(x: Tensor, weight: Tensor) -> bool:
    """Writing into a slice passes autograd and autocast by."""
    return x.dtype == weight.dtype and not (
        torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
    )
