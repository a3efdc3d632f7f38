"""Weights applied beside the base layer: y = base(x) + Σ scale (x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.lora_delta import PackedAdapters
from .peft import AdaptedLayer
from .slab import pack

__all__ = ["DeltaLayer"]


class DeltaLayer:
    """Runs the base layer once for all rows, then adds each row's adapters."""

    def __init__(self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float):
        self.layer = layer
        self.subsets = tuple(subsets)
        self.scale = scale
        self._convolves = isinstance(layer.base, nn.Conv2d)
        self._slab = None if self._convolves else pack(layer, subsets, scale)
        self.bytes = 0
        if not self._convolves:
            self._packed = PackedAdapters(self._slab.a, self._slab.b, self._slab.slots)
            self.bytes = self._slab.bytes + self._packed.bytes
        self._tables: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output."""
        if x.shape[0] == 1 and rows.count > 1:
            x = x.expand(rows.count, *x.shape[1:])
        y = self.layer.base(x)
        if self._convolves:
            return self._add_convolutions(y, x, rows)
        return self._add_delta(y, x, rows)

    def _add_delta(self, y: Tensor, x: Tensor, rows) -> Tensor:
        slab = self._slab
        tables = self._tables.get(rows.segments)
        if tables is None:
            subset_of_row = [s for s, start, stop in rows.segments for _ in range(start, stop)]
            tables = self._tables[rows.segments] = slab.tables(subset_of_row)
        # The op copies nothing by itself; projections of permuted images come with other strides.
        y = y.contiguous()
        tokens_in, tokens_out = (t.reshape(t.shape[0], -1, t.shape[-1]) for t in (x, y))
        if tokens_in.stride(-1) != 1:
            tokens_in = tokens_in.contiguous()
        dtype = slab.a.dtype  # autocast hands over others
        recorded = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        if recorded or not x.dtype == y.dtype == dtype:
            delta = ops.lora_delta(tokens_in.to(dtype), slab.a, slab.b, slab.slots, *tables)
            return y + delta.view_as(y).to(y.dtype)
        self._packed.lora_delta_(tokens_out, tokens_in, *tables)
        return y

    def _add_convolutions(self, y: Tensor, x: Tensor, rows) -> Tensor:
        pieces = []
        for subset, start, stop in rows.segments:
            piece = y[start:stop]
            for name in self.subsets[subset]:
                adapter = self.layer.adapters.get(name)
                if adapter is None:
                    continue
                down, up = self.layer.module.lora_A[name], self.layer.module.lora_B[name]
                hidden = down(x[start:stop].to(down.weight.dtype))
                piece = piece + up(hidden) * (adapter.scaling * self.scale)
            pieces.append(piece)
        result = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return result.to(y.dtype)
