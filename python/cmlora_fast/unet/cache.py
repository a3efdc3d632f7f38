"""Cached deep features, kept where the up block reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from .rows import Chunk
from .topology import Cut

__all__ = ["FeatureCache"]


@dataclass
class FeatureCache:
    """Features of every row of a run, in a buffer that is the input of the resnet they enter.

    ``buffer`` (rows, C_hidden + C_skip, h, w): the first channels are the cache, the skip fills
    the rest at every step, so that nothing is gathered or concatenated. ``filled`` holds the rows
    whose features are valid. ``buffers``, if any, outlives the run: a buffer of a known shape is
    taken from there, for steps that are replayed on it.
    """

    cut: Cut
    buffers: dict[tuple, Tensor] | None = None
    buffer: Tensor | None = None
    hidden_channels: int = 0
    filled: set[int] = field(default_factory=set)

    def empty(self) -> FeatureCache:
        """Another cache of the same kind, without features."""
        return FeatureCache(self.cut, self.buffers)

    @property
    def features(self) -> Tensor:
        """(rows, C_hidden, h, w), a view."""
        return self.buffer[:, : self.hidden_channels]

    def refresh(self, fresh: Tensor, skip_channels: int, chunk: Chunk) -> None:
        """Keep ``fresh`` (deep rows, C_hidden, h, w) for the chunk's deep rows."""
        if self.buffer is None:
            self.hidden_channels = fresh.shape[1]
            channels = fresh.shape[1] + skip_channels
            shape = (chunk.total, channels, *fresh.shape[2:])
            self.buffer = self._buffer(shape, fresh)
        layout = _layout(self.buffer)
        cache, fresh = self.features, fresh.contiguous(memory_format=layout)
        if layout is torch.channels_last:  # the op wants the dense dimension last
            cache, fresh = (tensor.permute(0, 2, 3, 1) for tensor in (cache, fresh))
        ops.cache_refresh_(cache, fresh, chunk.deep_index)
        self.filled.update(chunk.deep_rows)

    def _buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        layout = _layout(like)
        key = (self.cut, shape, like.dtype, layout)
        kept = None if self.buffers is None else self.buffers.get(key)
        if kept is None:
            kept = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
            if self.buffers is not None:
                self.buffers[key] = kept
        return kept

    def joined(self, chunk: Chunk, skip: Tensor) -> Tensor:
        """(count, C_hidden + C_skip, h, w): the features of the chunk's rows beside ``skip``."""
        target = self.buffer[chunk.start : chunk.stop]
        target[:, self.hidden_channels :] = skip
        return target


def _layout(images: Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
