"""Attention maps of a few prompt tokens, taken where cross-attention computes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .. import ops
from ..hooks import Patches

__all__ = ["TAP_LEVEL", "AttentionTap", "TapProcessor", "stage_size"]

TAP_LEVEL = 2  # maps come from the cross-attention layers at latents / 2**2


class AttentionTap:
    """Sums attention probabilities of tracked tokens over the layers of one stage and their heads.

    Only the tracked columns leave a layer; every other layer keeps its own processor.
    """

    def __init__(self) -> None:
        self._patches = Patches()
        self._tokens = 0
        self._columns: Tensor | None = None
        self._total: Tensor | None = None
        self._heads = 0
        self._found: list[Attention] | None = None

    def forget(self) -> None:
        """The UNet has changed: its layers are looked for at the next ``attach``."""
        self._found = None

    def attach(self, unet: nn.Module) -> None:
        """Put the tap into the cross-attention layers of ``unet``.

        Where the stage is the innermost (SDXL), the way up is left out: its layers are as many as
        the others and would double a pass that ends behind the tap (clora spec §5).
        """
        if self._found is None:
            self._found = self._find(unet)
        for module in self._found:
            self._patches.set(module, "processor", TapProcessor(module.processor, self))

    def _find(self, unet: nn.Module) -> list[Attention]:
        parts = [*unet.down_blocks, unet.mid_block]
        if not innermost(unet):
            parts += unet.up_blocks
        modules = (m for part in parts if part is not None for m in part.modules())
        return [m for m in modules if isinstance(m, Attention) and m.is_cross_attention]

    def detach(self) -> None:
        """Give every layer its own processor back."""
        self._patches.restore()

    @contextmanager
    def listening(self, size: tuple[int, int], columns: Tensor) -> Iterator[None]:
        """Sum the maps of a forward from layers of this stage; ``columns`` int32 (K,) tokens."""
        self._tokens, self._columns = size[0] * size[1], columns
        self._total, self._heads = None, 0
        try:
            yield
        finally:
            self._tokens, self._columns, self._total = 0, None, None

    def hears(self, queries: int) -> bool:
        return queries == self._tokens

    def add(self, query: Tensor, key: Tensor, heads: int, scale: float) -> None:
        """``query`` (rows, queries, heads * d) and ``key`` (rows, 77, heads * d) of one layer."""
        tracked = ops.attention_tap(query, key, self._columns, heads, scale)
        self._total = tracked if self._total is None else self._total + tracked
        self._heads += heads

    def maps(self) -> Tensor:
        """(rows, queries, K): the mean over layers and heads.

        Raises:
            ValueError: No layer works at this stage.
        """
        if self._total is None:
            raise ValueError(
                f"CLoRA: expected cross-attention layers with {self._tokens} queries (a quarter of "
                "the latents' sides); this UNet has none at this size"
            )
        return self._total / self._heads


class TapProcessor:
    """The layer's own processor, except while the tap listens to a layer of this size."""

    def __init__(self, plain: Any, tap: AttentionTap):
        self.plain, self._tap = plain, tap

    def hears(self, queries: int) -> bool:
        """Whether the tap listens to a layer of so many queries."""
        return self._tap.hears(queries)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        tapped = encoder_hidden_states is not None and hidden_states.dim() == 3
        if not tapped or not self.hears(hidden_states.shape[1]):
            return self.plain(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        self._tap.add(query, key, attn.heads, attn.scale)
        value = attn.to_v(encoder_hidden_states)
        out = ops.attention(query, key, value, attn.heads, attn.scale)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def innermost(unet: nn.Module) -> bool:
    """Whether the tapped stage is that of the middle block."""
    return sum(block.downsamplers is not None for block in unet.down_blocks) == TAP_LEVEL


def stage_size(latents: torch.Size) -> tuple[int, int]:
    """Rows and columns of the feature maps at the tapped stage."""
    stride = 2**TAP_LEVEL
    return -(-latents[-2] // stride), -(-latents[-1] // stride)
