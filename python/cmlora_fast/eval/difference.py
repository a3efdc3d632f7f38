"""Two images in pixel space: difference, high-pass difference, radial profiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import ops

__all__ = ["Difference", "difference"]

CUTOFF = 0.2  # of the largest radius; 72 of 362 bins at 512² in the released notebook


@dataclass(frozen=True)
class Difference:
    """Arrays (H, W) in levels of 255, profiles (bins), and numbers."""

    absolute: np.ndarray
    high_pass: np.ndarray
    profiles: tuple[np.ndarray, np.ndarray]
    numbers: dict[str, float]


def difference(image: Image.Image, reference: Image.Image) -> Difference:
    """``image`` against ``reference`` of the same size.

    ``high_pass`` is the absolute difference of what is left of the grey images without the square
    of low frequencies |fx|, |fy| < cutoff · R_max; profiles are those of ``ops.radial_amplitude``
    with the logarithm.
    """
    if image.size != reference.size:
        raise ValueError(f"difference: expected equal sizes; got {image.size}, {reference.size}")
    pixels = [np.asarray(i.convert("RGB"), np.float32) for i in (image, reference)]
    grey = [p.mean(-1) for p in pixels]
    gap = np.abs(pixels[0] - pixels[1])
    high = [_high_pass(g) for g in grey]
    profiles = [_profile(g) for g in grey]
    mse = float(np.mean(gap**2))
    numbers = {
        "mean_absolute": float(gap.mean()),
        "largest": float(gap.max()),
        "psnr": None if mse == 0 else float(10 * np.log10(255**2 / mse)),
        "high_pass_mean_absolute": float(np.abs(high[0] - high[1]).mean()),
    }
    return Difference(gap.mean(-1), np.abs(high[0] - high[1]), (profiles[0], profiles[1]), numbers)


def _high_pass(grey: np.ndarray) -> np.ndarray:
    H, W = grey.shape
    cut = int(CUTOFF * np.hypot(H // 2, W // 2))
    spectrum = np.fft.fftshift(np.fft.fft2(grey))
    spectrum[max(0, H // 2 - cut) : H // 2 + cut, max(0, W // 2 - cut) : W // 2 + cut] = 0
    return np.fft.ifft2(np.fft.ifftshift(spectrum)).real


def _profile(grey: np.ndarray) -> np.ndarray:
    tensor: Any = torch.from_numpy(grey)[None, None]
    return ops.radial_amplitude(tensor, CUTOFF, True)[1][0].numpy()
