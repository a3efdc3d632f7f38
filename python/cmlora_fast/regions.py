"""Masks that a user gives: which adapter draws which pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Region", "Regions", "check_masks", "pixel_shares", "row_masks", "subset_masks"]

ALLOWED = (
    "a picture: a PIL image, or an array or tensor (H, W) of bools, of ints 0..255 or 0..1, or of "
    "floats 0..1"
)


@dataclass(frozen=True)
class Region:
    """The pixels of one adapter, weights in 0..1. ``values``: float32, row by row."""

    height: int
    width: int
    values: bytes = field(repr=False)

    @classmethod
    def of(cls, picture: Any) -> Region:
        """A picture as a region.

        Raises:
            ValueError: Not a picture of weights, or no pixel above 0.
        """
        if isinstance(picture, cls):
            return picture
        pixels = _pixels(picture)
        return cls(*pixels.shape, np.ascontiguousarray(pixels, np.float32).tobytes())

    def at(self, size: Sequence[int], device: torch.device) -> Tensor:
        """(H, W) float32: means over the pixels that fall together, whatever the proportions."""
        pixels = np.frombuffer(self.values, np.float32).reshape(1, 1, self.height, self.width)
        resized = F.interpolate(torch.from_numpy(pixels.copy()), size=tuple(size), mode="area")
        return resized[0, 0].to(device)


class Regions(Mapping):
    """Adapter -> region; immutable, and equal where the pixels are."""

    def __init__(self, pictures: Mapping[str, Any]):
        self._regions = {name: Region.of(picture) for name, picture in pictures.items()}

    def __getitem__(self, name: str) -> Region:
        return self._regions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __hash__(self) -> int:
        return hash(frozenset(self._regions.items()))

    def __repr__(self) -> str:
        return repr(self._regions)


def check_masks(owner: Any) -> None:
    """The field ``masks`` of a frozen dataclass: None, or adapter -> picture, kept as ``Regions``.

    Raises:
        ValueError: Anything else.
    """
    value, head = owner.masks, f"{type(owner).__name__}.masks"
    if value is None:
        return
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{head}: expected None or {{adapter: picture}}; got {value!r}")
    for name in value:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{head}: expected names of adapters as keys; got {name!r}")
        try:
            Region.of(value[name])
        except ValueError as error:
            raise ValueError(f"{head}[{name!r}]: {error}") from None
    object.__setattr__(owner, "masks", Regions(value))


def subset_masks(
    regions: Regions, subsets: Sequence[Sequence[str]], size: Sequence[int], device: torch.device
) -> Tensor:
    """(subsets, H, W): the region of each single adapter; 1 for subsets without one."""
    masks = [
        regions[s[0]].at(size, device)
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
    masks = torch.stack([none if a is None else regions[a].at(size, device) for a in adapters])
    masks[0] += (1 - masks.sum(0)).clamp(min=0)
    return masks


def pixel_shares(shares: Tensor, masks: Tensor) -> Tensor:
    """Shares (J, B) of an image among masks (J, H, W) -> shares of its pixels (J, B, H, W).

    ``s_j m_j / Σ_k s_k m_k``; what the masks leave of a pixel goes to all rows by their shares.
    """
    rest = (1 - masks.sum(0)).clamp(min=0)
    weights = shares[:, :, None, None] * (masks + rest)[:, None]
    return (weights / weights.sum(0)).contiguous()


def _pixels(picture: Any) -> np.ndarray:
    """(H, W) in 0..1."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()
    elif hasattr(picture, "convert"):  # PIL; its modes I and F hold numbers
        numbers = picture.mode[0] in "IF"
        picture = np.asarray(picture if numbers else picture.convert("L"))
    pixels = picture if isinstance(picture, np.ndarray) else np.empty(())
    if pixels.ndim == 3 and 1 in (pixels.shape[0], pixels.shape[2]):
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels[:, :, 0]
    if pixels.dtype.kind not in "buif" or pixels.ndim != 2 or not pixels.size:
        shape = getattr(picture, "shape", None)
        form = type(picture).__name__ + (f" {tuple(shape)} {picture.dtype}" if shape else "")
        raise ValueError(f"expected {ALLOWED}; got {form}")
    if pixels.dtype.kind in "ui" and pixels.max() > 1:
        pixels = np.where((pixels >= 0) & (pixels <= 255), pixels / 255, np.nan)
    pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(f"expected {ALLOWED}; got other values")
    if not pixels.any():
        raise ValueError("expected a pixel above 0; got none")
    return pixels
