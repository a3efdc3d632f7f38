"""Given masks as tensors: which row's prediction draws which pixels of the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.regions import Region, Regions
from ..ops.reference import mask_shares

__all__ = ["pixel_shares", "resized", "row_masks", "subset_masks"]


def resized(region: Region, size: Sequence[int], device: torch.device) -> Tensor:
    """(H, W) float32: means over the pixels that fall together, whatever the proportions."""
    pixels = torch.frombuffer(bytearray(region.values), dtype=torch.float32)
    pixels = pixels.view(1, 1, region.height, region.width)
    return F.interpolate(pixels, size=tuple(size), mode="area")[0, 0].to(device)


def subset_masks(
    regions: Regions, subsets: Sequence[Sequence[str]], size: Sequence[int], device: torch.device
) -> Tensor:
    """(subsets, H, W): the region of each single adapter; 1 for subsets without one."""
    masks = [
        resized(regions[s[0]], size, device)
        if len(s) == 1 and s[0] in regions
        else torch.ones(*size, device=device)
        for s in subsets
    ]
    return torch.stack(masks)


def row_masks(
    regions: Regions, adapters: Sequence[str | None], size: Sequence[int], device: torch.device
) -> Tensor:
    """(J, H, W): the region of each row's adapter; row 0 also gets what they leave over."""
    none = torch.zeros(*size, device=device)
    masks = torch.stack(
        [none if a is None else resized(regions[a], size, device) for a in adapters]
    )
    masks[0] += (1 - masks.sum(0)).clamp(min=0)
    return masks


def pixel_shares(shares: Tensor, masks: Tensor) -> Tensor:
    """Shares (J, B) among masks (J, H, W), or (J, B, H, W) -> shares of pixels (J, B, H, W).

    ``s_j m_j / Σ_k s_k m_k``; what the masks leave of a pixel goes to all rows by their shares.
    """
    masks = masks[:, None] if masks.dim() == 3 else masks
    rest = (1 - masks.sum(0)).clamp(min=0)
    weights = shares[:, :, None, None] * (masks + rest)
    return mask_shares(weights).contiguous()
