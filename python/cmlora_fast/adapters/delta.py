"""Weights applied beside the base layer: y = base(x) + Σ scale (x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import ops
from ..ops.lora_delta import PackedAdapters
from ..ops.products import fast_on_cpu, is_pointwise, linear, product, takes_product
from .folded import widened
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
        base = layer.base
        self._convolves = isinstance(base, nn.Conv2d)
        self._pointwise = self._convolves and is_pointwise(base)
        self._static = static
        linear = not self._convolves or self._pointwise
        self._slab = pack(layer, subsets, scale, spare=static) if linear or static else None
        self.bytes = 0 if self._slab is None else self._slab.bytes
        if linear:
            a, b, slots = self._slab.a, self._slab.b, self._slab.slots
            self._packed = PackedAdapters(a, b, slots)
            self._packed_back = PackedAdapters(b.T, a.T, slots)  # packs when it first runs
            self.bytes += self._packed.bytes
        self._tables: dict[tuple, Tables] = {}

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads, but for tables that it made itself."""
        return (self._slab.a, self._slab.b)

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, C, H, W) -> the layer's output."""
        x = widened(x, rows)
        if not self._convolves:
            return self._linear(x, rows)
        if self._pointwise and not self._static and fast_on_cpu(x):
            return self._linear(x.permute(0, 2, 3, 1), rows).permute(0, 3, 1, 2)
        return self.beside(self.layer.base(x), x, rows)

    def beside(self, y: Tensor, x: Tensor, rows) -> Tensor:
        """What a convolution's adapters add to its base's ``y``."""
        if rows.subset_of_row is not None:
            return self._add_all_ranks(y, x, rows.subset_of_row)
        return self._add_convolutions(y, x, rows)

    def _linear(self, x: Tensor, rows) -> Tensor:
        """x: (rows, ..., K)."""
        slab, base, tables = self._slab, self.layer.base, self._tables_of(rows)
        if x.stride(-1) != 1:  # the op copies nothing by itself
            x = x.contiguous()
        weight, bias = base.weight, base.bias
        if self._static and _is_plain(base, x, slab.a):
            weights = (weight, bias, slab.a, slab.b, slab.slots)
            out = ops.lora_linear(_tokens(x), *weights, *tables)
            return out.view(*x.shape[:-1], out.shape[-1])
        if torch.is_grad_enabled() and x.requires_grad and takes_product(x, weight, bias):
            adapters = self._packed, self._packed_back
            return _Adapted.apply(x, weight.flatten(1), bias, *adapters, tables)
        y = linear(x, weight.flatten(1), bias) if self._pointwise else base(x)
        y = y.contiguous()
        dtype = slab.a.dtype  # autocast hands over others
        recorded = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        if recorded or not x.dtype == y.dtype == dtype:
            delta = ops.lora_delta(_tokens(x).to(dtype), slab.a, slab.b, slab.slots, *tables)
            return y + delta.view_as(y).to(y.dtype)
        self._packed.lora_delta_(_tokens(y), _tokens(x), *tables)
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
        hidden = (hidden * scale.to(a.dtype)).masked_fill_(scale == 0, 0)  # infinity times 0
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


def _tokens(x: Tensor) -> Tensor:
    """(rows, ..., K) -> (rows, tokens, K)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class _Adapted(torch.autograd.Function):
    """A linear layer with its rows' adapters; the gradient is in x alone, and keeps no tensor."""

    @staticmethod
    def forward(ctx, x, weight, bias, packed, packed_back, tables) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.adapters = packed_back, tables
        y = product(x, weight, bias)
        packed.lora_delta_(_tokens(y), _tokens(x), *tables)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (weight,), (packed_back, tables) = ctx.saved_tensors, ctx.adapters
        grad = grad.contiguous()
        dx = product(grad, weight.t())
        packed_back.lora_delta_(_tokens(dx), _tokens(grad), *tables)
        return dx, *[None] * 5
