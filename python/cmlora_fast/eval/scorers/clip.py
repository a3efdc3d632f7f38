"""CLIPScore: how well the image fits the trigger words (Hessel et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Scene, load_pretrained, open_image, require

__all__ = ["ClipScorer"]

DEFAULT = "openai/clip-vit-base-patch16"  # of the published ComposLoRA numbers (cmlora spec §5.2)


class _Features(nn.Module):
    """A CLIP model whose features are tensors in every version of transformers."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixels))

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return _tensor(self.model.get_text_features(tokens, mask))


class ClipScorer:
    """``clip``: 100 · cos(image, trigger words); the base prompt stays out, as in the papers."""

    name = "clip"
    wants: frozenset[str] = frozenset()

    def __init__(self, model: str = DEFAULT, device: str = "cpu"):
        self.model, self.device = model, device
        self._score: Any = None
        self._pair: Any = None

    @property
    def identity(self) -> str:
        return f"clip:{self.model}"

    def check(self) -> None:
        module = require("torchmetrics.functional.multimodal", self.name)
        model = load_pretrained("CLIPModel", self.model, self.name)
        processor = load_pretrained("CLIPProcessor", self.model, self.name)
        self._pair = _Features(model.eval()).to(self.device), processor
        self._score = module.clip_score

    @torch.no_grad()
    def score(self, scene: Scene) -> dict[str, Any]:
        triggers = [word for entry in scene.combination for word in entry.trigger]
        words = ", ".join(triggers) or scene.prompt
        pixels = torch.from_numpy(np.array(open_image(scene.image))).permute(2, 0, 1)
        return {"clip": float(self._score(pixels.to(self.device), words, lambda: self._pair))}


def _tensor(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output
