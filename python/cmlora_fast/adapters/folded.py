"""A layer whose rows run with the folded weight of their adapter subset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.products import conv2d, linear, linear_

__all__ = ["FoldedLayer", "widened"]

# From so many samples and tokens on, a product per subset with the bias inside costs less than one
# strided batch that needs the bias spread over its output first. From rooflines, not measured.
SINGLE_TOKENS = 1024

Segments = Sequence[tuple[Tensor, int, int]]


class FoldedLayer:
    """One weight per subset of a Linear or Conv2d layer; rows run with the weight of theirs.

    ``weights``: one each, which may be the same; or a stack [S, N, K...], for a device that finds
    its subsets there by itself. ``shifts`` [S, N]: what their adapters add to the bias.
    """

    def __init__(
        self, base: nn.Module, weights: Sequence[Tensor] | Tensor, shifts: Tensor | None = None
    ):
        self.base = base
        self.shifts = shifts
        self.stack = weights if isinstance(weights, Tensor) else None
        self.weights = tuple(weights) if self.stack is None else weights

    @property
    def apart(self) -> bool:
        """Whether every subset has a weight of its own, which is not part of a stack."""
        own = self.stack is None
        return own and len({id(weight) for weight in self.weights}) == len(self.weights)

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads."""
        return (self.stack,) if self.shifts is None else (self.stack, self.shifts)

    def __call__(self, x: Tensor, rows, biased: bool = True) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output.

        ``biased`` False: a convolution's, without its base's bias.
        """
        x = widened(x, rows)
        y = self._products(x, rows, biased)
        return y if self.shifts is None else y + self._shift(y, rows)

    def _shift(self, y: Tensor, rows) -> Tensor:
        """Of every row, to be added to ``y``."""
        if rows.subset_of_row is not None:
            shift = self.shifts.index_select(0, rows.subset_of_row)
        else:
            parts = [self.shifts[s].expand(stop - start, -1) for s, start, stop in rows.segments]
            shift = torch.cat(parts)
        between, after = (0, y.dim() - 2) if y.dim() == 4 else (y.dim() - 2, 0)
        count, N = shift.shape
        return shift.view(count, *[1] * between, N, *[1] * after).to(y.dtype)

    def _products(self, x: Tensor, rows, biased: bool) -> Tensor:
        stack, weights = self.stack, self.weights
        if rows.subsets is not None:
            weights = stack = _picked(stack, rows.subsets)
        if len(rows.segments) == 1:
            return self._run(x, weights[rows.segments[0][0]], biased)
        segments = _merged(weights, rows.segments)
        if len(segments) == 1:
            return self._run(x, segments[0][0], biased)
        if not (isinstance(self.base, nn.Linear) and _writes_in_place(x, segments[0][0])):
            return torch.cat([self._run(x[start:stop], w, biased) for w, start, stop in segments])
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.base.out_features)
        if stack is None or not self._as_a_batch(y, x, stack, rows.segments):
            for weight, start, stop in segments:
                linear_(y[start:stop], x[start:stop], weight, self.base.bias)
        return y

    def _run(self, x: Tensor, weight: Tensor, biased: bool) -> Tensor:
        base = self.base
        if isinstance(base, nn.Linear):
            return linear(x, weight, base.bias)
        return conv2d(x, weight, base, biased)

    def _as_a_batch(self, y: Tensor, x: Tensor, stack: Tensor, segments) -> bool:
        """One strided product into ``y``, for equally long segments of consecutive subsets."""
        first, _, length = segments[0]
        alike = all(
            (subset, stop - start) == (first + i, length)
            for i, (subset, start, stop) in enumerate(segments)
        )
        few = length * y[0].numel() < SINGLE_TOKENS * y.shape[-1]
        if not alike or not (self.base.bias is None or few):
            return False
        count = len(segments)
        source, target = (t.view(count, -1, t.shape[-1]) for t in (x, y))
        chosen = stack[first : first + count].mT
        if self.base.bias is None:
            torch.bmm(source, chosen, out=target)
        else:
            torch.baddbmm(self.base.bias, source, chosen, out=target)
        return True


def widened(x: Tensor, rows) -> Tensor:
    """A single sample, which broadcasts, once for every row."""
    return x.expand(rows.count, *x.shape[1:]) if x.shape[0] == 1 and rows.count > 1 else x


def _picked(stack: Tensor, subsets: Tensor) -> Tensor:
    """``stack[subsets]``, in the order in memory that it has."""
    if stack.dim() != 5:
        return stack.index_select(0, subsets)
    channels_last = stack.permute(0, 1, 3, 4, 2)
    if not channels_last.is_contiguous():
        return stack.index_select(0, subsets)
    return channels_last.index_select(0, subsets).permute(0, 1, 4, 2, 3)


def _merged(weights: Sequence[Tensor], segments) -> Segments:
    """(weight, start, stop), with neighbours that share a weight joined."""
    merged: list[tuple[Tensor, int, int]] = []
    for subset, start, stop in segments:
        weight = weights[subset]
        if merged and merged[-1][0] is weight:
            start = merged.pop()[1]
        merged.append((weight, start, stop))
    return merged


def _writes_in_place(x: Tensor, weight: Tensor) -> bool:
    """Writing into a slice passes autograd and autocast by."""
    return x.dtype == weight.dtype and not (
        torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
    )
