"""The released loop in plain torch: one pass per row, attention materialised at the tapped layers.

Slow and simple on purpose: what the engine has to reproduce, with the specification's numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from cmlora_fast.clora.tracked import Tracked
from cmlora_fast.methods.clora import CLoRA
from cmlora_fast.ops import reference as ops
from torch import Tensor


@dataclass
class Run:
    """What a run leaves behind, in the layout of the recordings."""

    losses: list[float] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)  # [T, C, h, w]
    maps: list[Tensor] = field(default_factory=list)  # [T, J, r, q, 77]
    masks: list[Tensor] = field(default_factory=list)  # [T, J, h, w]

    def stacked(self, name: str) -> Tensor:
        return torch.stack(getattr(self, name))


class MapStore:
    """Attention processor that keeps the probabilities of cross-attention of one size."""

    def __init__(self, queries: int):
        self.queries, self.probabilities = queries, []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if encoder_hidden_states is not None and q.shape[2] == self.queries:
            self.probabilities.append(weights)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


@contextlib.contextmanager
def stored(unet, queries: int) -> Iterator[MapStore]:
    before, store = unet.attn_processors, MapStore(queries)
    unet.set_attn_processor(store)
    try:
        yield store
    finally:
        unet.set_attn_processor(before)


class PlainLoop:
    """CLoRA as released, for one image and given embeddings.

    Args:
        unet: With the adapters loaded by PEFT.
        scheduler: One that needs no noise of its own.
        method: Its ``row_prompt_embeds`` and ``row_negative_prompt_embeds`` are the text.
    """

    def __init__(self, unet, scheduler, method: CLoRA, guidance_scale: float = 7.5):
        self.unet, self.scheduler = unet.requires_grad_(False), scheduler
        self.method, self.guidance_scale = method, guidance_scale
        self.tracked = Tracked.of(method.rows)

    def run(self, latents: Tensor, steps: int) -> Run:
        """Denoise ``latents`` (1, C, h, w)."""
        self.scheduler.set_timesteps(steps)
        record, z = Run(), latents * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.scheduler.timesteps):
            updates = self.method.updates(i, steps)
            for _ in range(updates):
                z = z.detach().requires_grad_()
                with torch.enable_grad():
                    noise, maps = self._rows(z, t)
                z = z - self.method.step_size * self._gradient(maps, z, record)
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
            record.latents.append(z[0])
            record.maps.append(maps)
            record.masks.append(masks[:, 0])
        return record

    def _rows(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions [2, J, 1, C, h, w] and mean maps [J, r, q, 77]."""
        sample = self.scheduler.scale_model_input(torch.cat([z, z]), t)
        high, wide = (-(-n // 4) for n in z.shape[-2:])
        noise, maps = [], []
        for j in range(self.method.row_count):
            self._activate(j)
            with stored(self.unet, high * wide) as store:
                noise.append(self.unet(sample, t, self._text(j)).sample)
            part = slice(1, 2) if self.method.maps_from == "cond" else slice(0, 2)
            layers = torch.stack([p[part].mean((0, 1)) for p in store.probabilities])
            maps.append(layers.mean(0).view(high, wide, -1))
        return torch.stack(noise, 1)[:, :, None], torch.stack(maps)

    def _activate(self, j: int) -> None:
        styles, adapter = self.method.style_adapters, self.method.rows[j].adapter
        names = [name for name in (adapter, *styles) if name]
        self.unet.disable_adapters()
        if names:
            self.unet.enable_adapters()
            weights = [1.0] * bool(adapter) + [self.method.style_weight] * len(styles)
            self.unet.set_adapters(names, weights)
            self.unet.requires_grad_(False)

    def _text(self, j: int) -> Tensor:
        negative = self.method.row_negative_prompt_embeds
        return torch.stack([negative[j % len(negative)], self.method.row_prompt_embeds[j]])

    def _tracked(self, maps: Tensor) -> Tensor:
        return maps[self.tracked.row, :, :, self.tracked.token][:, None]

    def _gradient(self, maps: Tensor, z: Tensor, record: Run) -> Tensor:
        chosen = self._tracked(maps)
        tables = torch.tensor(self.tracked.index), torch.tensor(self.tracked.labels)
        loss, slope = ops.contrastive_loss(chosen.detach(), *tables, self.method.temperature)
        record.losses.append(loss.item())
        return torch.autograd.grad(chosen, z, slope.to(chosen.dtype))[0]

    def _masks(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        method, mask_row = self.method, torch.tensor(self.tracked.mask_row)
        return ops.attention_masks(
            self._tracked(maps),
            mask_row,
            method.row_count,
            size,
            method.mask_threshold_alpha,
            dilate=method.mask_dilate,
            erode=method.mask_erode,
            opening=method.mask_opening,
            closing=method.mask_closing,
        )
