"""Cached deep features, kept where the up block reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from .rows import Rows, RowTable, pick
from .topology import Cut

__all__ = ["FeatureCache"]


@dataclass
class FeatureCache:
    """Features of every row of a run, in a buffer that is the input of the resnet they enter.

    ``buffer`` (slots, C_hidden + C_skip, h, w): the first channels are the cache, the skip fills
    the rest at every step, so that nothing is gathered or concatenated where slots follow one
    another as rows do. ``filled`` holds the slots whose features are valid. ``buffers``, if any,
    outlives the run: a buffer of a known shape is taken from there, for steps that are replayed.
    """

    cut: Cut
    buffers: dict[tuple, Tensor] | None = None
    buffer: Tensor | None = None
    hidden_channels: int = 0
    filled: set[int] = field(default_factory=set)

    @property
    def features(self) -> Tensor:
        """(slots, C_hidden, h, w), a view."""
        return self.buffer[:, : self.hidden_channels]

    def refresh(self, fresh: Tensor, skip_channels: int, deep: Rows) -> None:
        """Keep ``fresh`` (rows, C_hidden, h, w) for the rows ``deep``."""
        if self.buffer is None:
            self.hidden_channels = fresh.shape[1]
            channels = fresh.shape[1] + skip_channels
            shape = (deep.table.slots, channels, *fresh.shape[2:])
            self.buffer = self._buffer(shape, fresh)
        layout = _layout(self.buffer)
        cache, fresh = self.features, fresh.contiguous(memory_format=layout)
        if layout is torch.channels_last:  # the op wants the dense dimension last
            cache, fresh = (tensor.permute(0, 2, 3, 1) for tensor in (cache, fresh))
        ops.cache_refresh_(cache, fresh, deep.slots)
        self.fill(deep.table)

    def fill(self, deep: RowTable) -> None:
        """Features of these rows are valid from now on; those that the device chose were before."""
        if deep.memory is None:
            self.filled.update(deep.slot)

    def _buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        layout = _layout(like)
        key = (self.cut, shape, like.dtype, layout)
        kept = None if self.buffers is None else self.buffers.get(key)
        if kept is None:
            kept = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
            if self.buffers is not None:
                self.buffers[key] = kept
        return kept

    def joined(self, rows: Rows, skip: Tensor) -> Tensor:
        """(count, C_hidden + C_skip, h, w): the features of ``rows`` beside ``skip``."""
        target = pick(self.buffer, rows.table.slot)
        target[:, self.hidden_channels :] = skip
        return target


def _layout(images: Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
