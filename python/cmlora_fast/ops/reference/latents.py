"""Twins of what looks at latents, features and predictions."""

import functools
import math

import torch
from torch import Tensor

from ..tensors import accumulator

__all__ = [
    "cache_refresh_",
    "combine_",
    "decide_",
    "first_bin",
    "mask_shares",
    "radial_amplitude",
    "radial_bins",
    "radius_table",
]


def radial_amplitude(
    latents: Tensor, cutoff: float = 0.2, log: bool = False
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(latents.dtype)
    height, width = latents.shape[-2:]
    radius, count = radius_table(height, width, latents.device)
    amplitude = torch.fft.fft2(latents.to(dtype).mean(1)).abs().flatten(1)
    if log:
        amplitude = (amplitude + 1e-8).log()
    profile = amplitude.new_zeros(latents.shape[0], count.numel())
    profile = profile.index_add_(1, radius, amplitude) / count.to(dtype)
    profile = profile / profile.amax(1, keepdim=True)
    return profile[:, first_bin(height, width, cutoff) :].mean(1), profile


def first_bin(height: int, width: int, cutoff: float) -> int:
    """First bin of the high band: ``max(1, floor(cutoff·R_max))``, or ``cutoff`` itself above 1."""
    if cutoff > 1:
        return int(cutoff)
    return max(1, math.floor(cutoff * math.hypot(height // 2, width // 2)))


def radial_bins(height: int, width: int) -> int:
    """Number of integer radii of a spectrum with its zero frequency at (H//2, W//2)."""
    return math.isqrt((height // 2) ** 2 + (width // 2) ** 2) + 1


@functools.lru_cache(maxsize=16)
def radius_table(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Integer radius of every cell in the order of ``fft2`` [H·W], and cells per radius [bins]."""
    ky = torch.fft.ifftshift(torch.arange(height) - height // 2)
    kx = torch.fft.ifftshift(torch.arange(width) - width // 2)
    radius = (ky[:, None] ** 2 + kx**2).double().sqrt().long().flatten()
    count = torch.bincount(radius, minlength=radial_bins(height, width))
    return radius.to(device), count.to(device)


def cache_refresh_(cache: Tensor, fresh: Tensor, rows: Tensor) -> None:
    cache.index_copy_(0, rows.long(), fresh)


def combine_(
    out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None = None
) -> None:
    dtype = accumulator(noise.dtype)
    shares = weights.to(dtype)[:, :, None]
    mixed = (noise.to(dtype) * (shares if weights.dim() == 4 else shares[..., None, None])).sum(1)
    if guidance_scale is not None:
        unconditional, conditional = mixed
        mixed = unconditional + guidance_scale * (conditional - unconditional)
    out.copy_(mixed)


def mask_shares(masks: Tensor) -> Tensor:
    """``M_j / Σ_j M_j`` per pixel, 1/J where all are 0. [J, B, H, W]."""
    masks = masks.to(accumulator(masks.dtype))
    total = masks.sum(0)
    return (masks / total).masked_fill(~(total > 0), 1 / len(masks))


def decide_(
    early: Tensor,
    weights: Tensor,
    deep: Tensor,
    reading: Tensor | None,
    shares: Tensor,
    places: Tensor,
    threshold: float,
    latch: bool = True,
    nan_early: bool = False,
) -> None:
    if reading is not None:
        above = torch.where(reading.isnan(), nan_early, reading.double() >= threshold)
        early.copy_(above & (early > 0) if latch else above)
    stage, (B, batch) = early.long(), (early.numel(), weights.shape[1])
    weights.copy_(shares[stage].T.repeat(1, batch // B))
    subset = places[stage][:, :, None]  # [B, F, 1]
    sample = torch.arange(batch, dtype=torch.int32, device=early.device).view(-1, B).T[:, None]
    rows = subset * batch + sample  # [B, F, parts]
    deep[0], deep[1] = rows.flatten(), subset.expand_as(rows).flatten()
    deep[2] = 0
    deep[2, : subset.numel()] = subset.flatten()
