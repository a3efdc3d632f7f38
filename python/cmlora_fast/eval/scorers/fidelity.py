"""What caching changes: PSNR, SSIM and LPIPS against the same image without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Scene, open_image, require

__all__ = ["FidelityScorer", "LpipsScorer"]

IDENTICAL = 100.0  # dB, in place of infinity; one level in one pixel of 512 x 512 x 3 is 107


class FidelityScorer:
    """``psnr`` in dB and ``ssim``; nothing for an image that is its own reference."""

    name = "fidelity"
    identity = "fidelity"
    wants = frozenset({"reference"})

    def check(self) -> None:
        self._metrics = require("torchmetrics.functional.image", self.name)

    def score(self, scene: Scene) -> dict[str, Any]:
        if scene.reference is None:
            return {}
        image, reference = unit_pixels(scene.image), unit_pixels(scene.reference)
        psnr = self._metrics.peak_signal_noise_ratio(image, reference, data_range=1.0)
        ssim = self._metrics.structural_similarity_index_measure(image, reference, data_range=1.0)
        return {"psnr": min(float(psnr), IDENTICAL), "ssim": float(ssim)}


class LpipsScorer:
    """``lpips`` with AlexNet (Zhang et al. 2018): a distance, 0 for equal images."""

    name = "lpips"
    identity = "lpips:alex"
    wants = frozenset({"reference"})

    def __init__(self, device: str = "cpu"):
        self.device = device

    def check(self) -> None:
        require("torchvision", self.name)
        module = require("torchmetrics.image.lpip", self.name)
        try:
            metric = module.LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
        except Exception as error:
            raise ValueError(f"scorer lpips: AlexNet cannot be loaded: {error}") from error
        self._metric = metric.to(self.device)

    @torch.no_grad()
    def score(self, scene: Scene) -> dict[str, Any]:
        if scene.reference is None:
            return {}
        pair = unit_pixels(scene.image), unit_pixels(scene.reference)
        return {"lpips": float(self._metric(*(image.to(self.device) for image in pair)))}


def unit_pixels(path: Path) -> Tensor:
    """(1, 3, H, W) in 0..1."""
    pixels = torch.from_numpy(np.array(open_image(path), dtype=np.float32))
    return pixels.permute(2, 0, 1)[None] / 255
