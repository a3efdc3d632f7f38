"""ImageReward: a model of human preference (Xu et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch

from .base import Scene, require

__all__ = ["RewardScorer"]

DEFAULT = "ImageReward-v1.0"


class RewardScorer:
    """``image_reward`` of the image for the prompt that painted it."""

    name = "reward"
    wants: frozenset[str] = frozenset()

    def __init__(self, model: str = DEFAULT, device: str = "cpu"):
        self.model, self.device = model, device

    @property
    def identity(self) -> str:
        return f"reward:{self.model}"

    def check(self) -> None:
        # A package of its own: it pins old versions, so it is not part of the extra.
        module = require("ImageReward", self.name, "pip install image-reward")
        try:
            self._model = module.load(self.model, device=self.device)
        except Exception as error:
            raise ValueError(
                f"scorer reward: model {self.model}: cannot be loaded: {error}"
            ) from error

    @torch.no_grad()
    def score(self, scene: Scene) -> dict[str, Any]:
        return {"image_reward": float(self._model.score(scene.prompt, str(scene.image)))}
