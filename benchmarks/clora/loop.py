"""CLoRA as one would write it: one pass per row, attention materialised at the tapped layers.

Adapters are switched by PEFT's ``set_adapters``, every update is a whole forward. The benchmark
races this loop, and the tests check the engine against it, with the specification's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from cmlora_fast import CLoRA
from cmlora_fast.clora.tracked import Tracked
from cmlora_fast.ops import reference as ops
from torch import Tensor

__all__ = ["CLoRALoop", "Step"]


@dataclass(frozen=True)
class Step:
    """What one step leaves behind: maps [J, r, q, 77], masks [J, h, w], latents [1, C, h, w]."""

    latents: Tensor
    maps: Tensor
    masks: Tensor
    losses: tuple[float, ...]


class CLoRALoop:
    """One image from given embeddings.

    Args:
        unet: With the adapters loaded by PEFT.
        scheduler: One that needs no noise of its own.
        method: Its ``row_prompt_embeds`` and ``row_negative_prompt_embeds`` are the text.
        frozen: No parameter records gradients; PEFT asks them of an adapter that it activates.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        method: CLoRA,
        guidance_scale: float = 7.5,
        *,
        frozen: bool = True,
    ):
        self.unet, self.scheduler, self.frozen = unet, scheduler, frozen
        self.method, self.guidance_scale = method, guidance_scale
        self.tracked = Tracked.of(method.rows)
        if frozen:
            unet.requires_grad_(False)

    def steps(self, latents: Tensor, count: int) -> Iterator[Step]:
        """Denoise ``latents`` [1, C, h, w] in so many steps."""
        self.scheduler.set_timesteps(count)
        z = latents * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.scheduler.timesteps):
            updates, losses = self.method.updates(i, count), []
            for _ in range(updates):
                z = z.detach().requires_grad_()
                with torch.enable_grad():
                    noise, maps = self._rows(z, t)
                slope = self._slope(maps, z, losses)
                z = z - self.method.step_size * slope
            if not updates or self.method.refresh_after_update:
                with torch.no_grad():
                    noise, maps = self._rows(z, t)
            z, noise, maps = z.detach(), noise.detach(), maps.detach()
            masks = z.new_ones(len(maps), 1, *z.shape[-2:])
            if i >= self.method.apply_mask_after:
                masks = self._masks(maps, z.shape[-2:])
            fused = torch.empty_like(z)
            ops.combine_(fused, noise, ops.mask_shares(masks), self.guidance_scale)
            z = self.scheduler.step(fused, t, z).prev_sample
            yield Step(z, maps, masks[:, 0], tuple(losses))

    def _rows(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions [2, J, 1, C, h, w] and mean maps [J, r, q, 77]."""
        sample = self.scheduler.scale_model_input(torch.cat([z, z]), t)
        high, wide = (-(-n // 4) for n in z.shape[-2:])
        part = slice(1, 2) if self.method.maps_from == "cond" else slice(0, 2)
        noise, maps = [], []
        for j in range(self.method.row_count):
            self._activate(j)
            with _stored(self.unet, high * wide) as probabilities:
                noise.append(self.unet(sample, t, self._text(j)).sample)
            layers = torch.stack([layer[part].mean((0, 1)) for layer in probabilities])
            maps.append(layers.mean(0).view(high, wide, -1))
        return torch.stack(noise, 1)[:, :, None], torch.stack(maps)

    def _activate(self, j: int) -> None:
        styles, adapter = self.method.style_adapters, self.method.rows[j].adapter
        names = [name for name in (adapter, *styles) if name]
        if not names:
            self.unet.disable_adapters()
            return
        weights = [1.0] * bool(adapter) + [self.method.style_weight] * len(styles)
        self.unet.enable_adapters()
        self.unet.set_adapters(names, weights)
        if self.frozen:
            self.unet.requires_grad_(False)

    def _text(self, j: int) -> Tensor:
        negative = self.method.row_negative_prompt_embeds
        return torch.stack([negative[j % len(negative)], self.method.row_prompt_embeds[j]])

    def _tracked(self, maps: Tensor) -> Tensor:
        return maps[self.tracked.row, :, :, self.tracked.token][:, None]

    def _slope(self, maps: Tensor, z: Tensor, losses: list[float]) -> Tensor:
        chosen = self._tracked(maps)
        tables = torch.tensor(self.tracked.index), torch.tensor(self.tracked.labels)
        loss, slope = ops.contrastive_loss(chosen.detach(), *tables, self.method.temperature)
        losses.append(loss.item())
        return torch.autograd.grad(chosen, z, slope.to(chosen.dtype))[0]

    def _masks(self, maps: Tensor, size: torch.Size) -> Tensor:
        method = self.method
        return ops.attention_masks(
            self._tracked(maps),
            torch.tensor(self.tracked.mask_row),
            method.row_count,
            size,
            method.mask_threshold_alpha,
            dilate=method.mask_dilate,
            erode=method.mask_erode,
            opening=method.mask_opening,
            closing=method.mask_closing,
        )


@contextmanager
def _stored(unet: Any, queries: int) -> Iterator[list[Tensor]]:
    """Keep the probabilities of cross-attention with so many queries; other layers stay."""
    before, probabilities = unet.attn_processors, []

    def materialised(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        q, k, v = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        probabilities.append(weights)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

    def choose(plain: Any) -> Callable[..., Tensor]:
        def processor(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            tapped = encoder_hidden_states is not None and hidden_states.shape[1] == queries
            use = materialised if tapped else plain
            return use(attn, hidden_states, encoder_hidden_states, attention_mask)

        return processor

    unet.set_attn_processor({name: choose(plain) for name, plain in before.items()})
    try:
        yield probabilities
    finally:
        unet.set_attn_processor(before)
