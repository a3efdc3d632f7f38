"""A small classifier that says which of the 22 concepts an image shows."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .concepts import CATEGORIES, CONCEPTS, concepts_of

_WIDTHS = (32, 64, 96, 96)
CLASSES = {k: [None] + [c for c in CONCEPTS if c.category == k] for k in CATEGORIES}  # None: none


class ScorerNet(nn.Module):
    """Four strided convolution stages, then one head per category: none or one of its concepts."""

    def __init__(self):
        super().__init__()
        layers, previous = [], 3
        for width in _WIDTHS:
            layers += [
                nn.Conv2d(previous, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            previous = width
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.sizes = [len(classes) for classes in CLASSES.values()]
        self.heads = nn.Linear(_WIDTHS[-1] * 16, sum(self.sizes))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, 3, 64, 64] in -1..1 to logits [B, classes] of each category."""
        return self.heads(self.features(x)).split(self.sizes, -1)


def _to_tensor(images) -> torch.Tensor:
    """PIL images or uint8 arrays [64, 64, 3] to float [B, 3, 64, 64] in -1..1."""
    arrays = [np.asarray(i.convert("RGB") if hasattr(i, "convert") else i) for i in images]
    wrong = [a.shape for a in arrays if a.shape != (64, 64, 3) or a.dtype != np.uint8]
    if wrong:
        raise ValueError(f"Scorer: expected 8-bit images [64, 64, 3]; got {wrong[0]}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Scorer:
    """`Scorer().score(images, style)`: for each image the probability of each of its concepts."""

    def __init__(self, path: Path | str | None = None):
        self.net = ScorerNet().eval()
        path = path or Path(__file__).parent / "data" / "scorer.safetensors"
        self.net.load_state_dict({k: v.float() for k, v in load_file(path).items()})

    @torch.no_grad()
    def score(self, images: Iterable, style: str = "anime") -> list[dict[str, float]]:
        """Probability of each of the style's concepts by id, one dict per image.

        Args:
            images: PIL images or uint8 arrays, [64, 64, 3] each.
        """
        wanted, images = concepts_of(style), list(images)
        if not images:
            return []
        logits = self.net(_to_tensor(images))
        shown = dict(zip(CATEGORIES, (x.softmax(-1) for x in logits), strict=True))
        columns = [shown[c.category][:, CLASSES[c.category].index(c)].tolist() for c in wanted]
        ids = [c.id for c in wanted]
        return [dict(zip(ids, row, strict=True)) for row in zip(*columns, strict=True)]
