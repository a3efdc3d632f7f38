"""How alike the features of an adapter are from step to step: what caching relies on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alike", "similarity"]

ALIKE = 0.9  # cosine from which two features count as alike (cmlora spec §1.11)


def similarity(features: Tensor) -> Tensor:
    """(T, T) cosines of features (T, batch, C, h, w), guidance halves together."""
    flat = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
    return flat @ flat.T


def alike(cosines: Tensor) -> list[float]:
    """Per step from 1 on: the share of earlier steps whose features are alike."""
    return [float((cosines[i, :i] >= ALIKE).float().mean()) for i in range(1, len(cosines))]
