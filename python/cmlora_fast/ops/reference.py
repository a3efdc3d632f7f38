"""Plain torch versions of every op: definition, fallback, test oracle and benchmark baseline.

Sizes: ``rows`` samples of the UNet batch, ``tokens`` per sample, ``K`` input and ``N`` output
features, ``ΣR`` the ranks of all adapters side by side, ``S`` adapters (slots), ``nnz`` entries of
the row table. float16 and bfloat16 are accumulated in float32, float64 in float64.
"""

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .clora_reference import (  # noqa: F401
    attention_masks,
    attention_tap,
    claim_rest,
    contrastive_loss,
    mask_shares,
)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    split = [tokens.unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (q, k, v)]
    return F.scaled_dot_product_attention(*split, scale=scale).transpose(1, 2).flatten(2)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    dtype = _accumulator(x.dtype)
    z = x.to(dtype) if shift is None else x.to(dtype) + shift.to(dtype)[:, None]
    out = F.group_norm(z.mT, groups, weight.to(dtype), bias.to(dtype), eps).mT
    return (F.silu(out) if silu else out).to(x.dtype).contiguous()


def geglu(x: Tensor) -> Tensor:
    value, gate = x.to(_accumulator(x.dtype)).chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(x.dtype)


def im2col(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    columns = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=padding, stride=stride)
    sizes = zip(x.shape[1:3], kernel, stride, padding, strict=True)
    places = [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]
    return columns.transpose(1, 2).reshape(x.shape[0], *places, columns.shape[1])


def col2im(
    columns: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    flat = columns.flatten(1, 2).transpose(1, 2)
    return F.fold(flat, size, kernel, padding=padding, stride=stride).permute(0, 2, 3, 1)


def lora_delta_(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> None:
    dtype = _accumulator(y.dtype)
    for row, segments in enumerate(_segments(slots, row_ptr, row_slot, row_scale)):
        if not segments:
            continue
        total, x_row = y[row].to(dtype), x[row].to(dtype)  # y[row] itself in float32
        for first, last, scale in segments:
            hidden = x_row @ a[first:last].to(dtype).T
            total.addmm_(hidden, b[:, first:last].to(dtype).T, alpha=scale)
        if y.dtype != dtype:
            y[row].copy_(total)


def lora_delta(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    dtype = _accumulator(x.dtype)
    deltas = []
    for row, segments in enumerate(_segments(slots, row_ptr, row_slot, row_scale)):
        x_row = x[row].to(dtype)
        total = x_row.new_zeros(x.shape[1], b.shape[0])
        for first, last, scale in segments:
            hidden = x_row @ a[first:last].to(dtype).T
            total = total + scale * (hidden @ b[:, first:last].to(dtype).T)
        deltas.append(total.to(x.dtype))
    return torch.stack(deltas) if deltas else x.new_zeros(0, x.shape[1], b.shape[0])


def lora_fold(
    w: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    dtype = _accumulator(w.dtype)
    folded = w.new_empty(row_ptr.numel() - 1, *w.shape)
    for row, segments in enumerate(_segments(slots, row_ptr, row_slot, row_scale)):
        total = w.to(dtype, copy=True)
        for first, last, scale in segments:
            total.addmm_(b[:, first:last].to(dtype), a[first:last].to(dtype), alpha=scale)
        folded[row] = total
    return folded


def lora_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    dtype = _accumulator(x.dtype)
    base = torch.nn.functional.linear(
        x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype)
    )
    lora_delta_(base, x.to(dtype), a.to(dtype), b.to(dtype), slots, row_ptr, row_slot, row_scale)
    return base.to(x.dtype)


def radial_amplitude(
    latents: Tensor, cutoff: float = 0.2, log: bool = False
) -> tuple[Tensor, Tensor]:
    dtype = _accumulator(latents.dtype)
    height, width = latents.shape[-2:]
    radius, count = radius_table(height, width, latents.device)
    amplitude = torch.fft.fft2(latents.to(dtype).mean(1)).abs().flatten(1)
    if log:
        amplitude = (amplitude + 1e-8).log()
    profile = amplitude.new_zeros(latents.shape[0], count.numel())
    profile = profile.index_add_(1, radius, amplitude) / count.to(dtype)
    profile = profile / profile.amax(1, keepdim=True)
    return profile[:, first_bin(height, width, cutoff) :].mean(1), profile


def cache_refresh_(cache: Tensor, fresh: Tensor, rows: Tensor) -> None:
    cache.index_copy_(0, rows.long(), fresh)


def combine_(
    out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None = None
) -> None:
    dtype = _accumulator(noise.dtype)
    shares = weights.to(dtype)[:, :, None]
    mixed = (noise.to(dtype) * (shares if weights.dim() == 4 else shares[..., None, None])).sum(1)
    if guidance_scale is not None:
        unconditional, conditional = mixed
        mixed = unconditional + guidance_scale * (conditional - unconditional)
    out.copy_(mixed)


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


def _segments(slots, row_ptr, row_slot, row_scale) -> list[list[tuple[int, int, float]]]:
    """Per row: first rank, end of ranks, scale of each adapter; adapters of rank 0 left out."""
    slots, row_ptr = slots.tolist(), row_ptr.tolist()
    entries = [
        (slots[slot], slots[slot + 1], scale)
        for slot, scale in zip(row_slot.tolist(), row_scale.tolist(), strict=True)
    ]
    return [
        [entry for entry in entries[start:end] if entry[0] < entry[1]]
        for start, end in itertools.pairwise(row_ptr)
    ]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
