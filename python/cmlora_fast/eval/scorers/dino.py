"""DINO similarity to what each LoRA paints alone (the metric of CLoRA)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from .base import Scene, load_pretrained, open_image

__all__ = ["DinoScorer"]

DEFAULT = "facebook/dino-vits16"


class DinoScorer:
    """Cosine of class tokens, averaged over each LoRA's own images.

    ``dino_min``, ``dino_mean`` and ``dino_max`` are taken over the LoRAs of the image: the minimum
    falls when one of them is missing.
    """

    name = "dino"
    wants = frozenset({"own"})

    def __init__(self, model: str = DEFAULT, device: str = "cpu"):
        self.model, self.device = model, device
        self._features = cache(self._compute)

    @property
    def identity(self) -> str:
        return f"dino:{self.model}"

    def check(self) -> None:
        self._model = load_pretrained("AutoModel", self.model, self.name).eval().to(self.device)
        self._processor = load_pretrained("AutoImageProcessor", self.model, self.name)

    def score(self, scene: Scene) -> dict[str, Any]:
        mine = self._features(scene.image)
        similar = [
            fmean(float(mine @ self._features(path)) for path in paths)
            for paths in scene.own.values()
        ]
        return {"dino_min": min(similar), "dino_mean": fmean(similar), "dino_max": max(similar)}

    @torch.no_grad()
    def _compute(self, path: Path) -> Tensor:
        """(width,), of norm 1."""
        pixels = self._processor(images=open_image(path), return_tensors="pt")["pixel_values"]
        token = self._model(pixel_values=pixels.to(self.device)).last_hidden_state[0, 0]
        return torch.nn.functional.normalize(token.float(), dim=0)
