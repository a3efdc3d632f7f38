"""Weights applied beside the base layer: y = base(x) + Σ scale (x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.lora_delta import PackedAdapters
from .peft import AdaptedLayer
from .slab import pack

__all__ = ["DeltaLayer"]

Tables = tuple[Tensor, Tensor, Tensor]


class DeltaLayer:
    """Runs the base layer once for all rows, then adds each row's adapters.

    ``static``: on memory that stays, and without asking the host which rows carry which subset.
    """

    def __init__(
        self,
        layer: AdaptedLayer,
        subsets: Sequence[tuple[str, ...]],
        scale: float,
        static: bool = False,
    ):
        self.layer = layer
        self.subsets = tuple(subsets)
        self.scale = scale
        self._convolves = isinstance(layer.base, nn.Conv2d)
        self._static = static
        beside = self._convolves and not static  # PEFT's own convolutions run
        self._slab = None if beside else pack(layer, subsets, scale, spare=static)
        self.bytes = 0 if beside else self._slab.bytes
        if not self._convolves:
            self._packed = PackedAdapters(self._slab.a, self._slab.b, self._slab.slots)
            self.bytes += self._packed.bytes
        self._tables: dict[tuple, Tables] = {}

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads, but for tables that it made itself."""
        return (self._slab.a, self._slab.b)

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output."""
        if x.shape[0] == 1 and rows.count > 1:
            x = x.expand(rows.count, *x.shape[1:])
        if not self._convolves:
            return self._linear(x, rows)
        y = self.layer.base(x)
        if rows.subset_of_row is not None:
            return self._add_all_ranks(y, x, rows.subset_of_row)
        return self._add_convolutions(y, x, rows)

    def _linear(self, x: Tensor, rows) -> Tensor:
        slab, base, tables = self._slab, self.layer.base, self._tables_of(rows)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        if tokens.stride(-1) != 1:
            tokens = tokens.contiguous()
        if self._static and _is_plain(base, x, slab.a):
            weights = (base.weight, base.bias, slab.a, slab.b, slab.slots)
            out = ops.lora_linear(tokens, *weights, *tables)
            return out.view(*x.shape[:-1], out.shape[-1])
        # The op copies nothing by itself; projections of permuted images come with other strides.
        y = base(x).contiguous()
        dtype = slab.a.dtype  # autocast hands over others
        recorded = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        if recorded or not x.dtype == y.dtype == dtype:
            delta = ops.lora_delta(tokens.to(dtype), slab.a, slab.b, slab.slots, *tables)
            return y + delta.view_as(y).to(y.dtype)
        self._packed.lora_delta_(y.view(y.shape[0], -1, y.shape[-1]), tokens, *tables)
        return y

    def _tables_of(self, rows) -> Tables:
        if rows.subset_of_row is not None:
            return self._slab.tables_at(rows.subset_of_row)
        tables = self._tables.get(rows.segments)
        if tables is None:
            tables = self._tables[rows.segments] = self._slab.tables(_subset_of_row(rows))
        return tables

    def _add_all_ranks(self, y: Tensor, x: Tensor, subset_of_row: Tensor) -> Tensor:
        """Every adapter's ranks for every row, those that a row does not carry set to 0.

        More products than needed, for the few rows of which the host does not know the subset.
        """
        slab, layer = self._slab, self.layer.base
        a = slab.a.view(-1, *layer.weight.shape[1:])
        hidden = F.conv2d(x.to(a.dtype), a, None, layer.stride, layer.padding, layer.dilation)
        scale = slab.rank_scales.index_select(0, subset_of_row)[:, :, None, None]
        hidden = torch.where(scale != 0, hidden * scale.to(a.dtype), 0)
        return (y + F.conv2d(hidden, slab.b[:, :, None, None])).to(y.dtype)

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


def _subset_of_row(rows) -> list[int]:
    return [s for s, start, stop in rows.segments for _ in range(start, stop)]


def _is_plain(base: nn.Module, x: Tensor, a: Tensor) -> bool:
    """One product with a weight as it is: neither quantised nor cast by autocast, no gradient."""
    same = type(base) is nn.Linear and base.weight.dtype == x.dtype == a.dtype
    return same and not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))
