"""A small classifier that says which of the ten concepts an image shows."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .concepts import CATEGORIES, IDS

_WIDTHS = (32, 64, 96, 96)
_CLASSES = 3  # neither, the first, the second concept of the category


class ScorerNet(nn.Module):
    """Four strided convolution stages, then one three-way head per category."""

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
        self.heads = nn.Linear(_WIDTHS[-1] * 16, _CLASSES * len(CATEGORIES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, 64, 64] in -1..1 to logits [B, 5, 3]."""
        return self.heads(self.features(x)).view(len(x), len(CATEGORIES), _CLASSES)


def _to_tensor(images) -> torch.Tensor:
    """PIL images or uint8 arrays [64, 64, 3] to float [B, 3, 64, 64] in -1..1."""
    arrays = [np.asarray(i.convert("RGB") if hasattr(i, "convert") else i) for i in images]
    wrong = [a.shape for a in arrays if a.shape != (64, 64, 3) or a.dtype != np.uint8]
    if wrong:
        raise ValueError(f"Scorer: expected 8-bit images [64, 64, 3]; got {wrong[0]}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Scorer:
    """`Scorer().score(images)`: for each image the probability of each of the ten concepts."""

    def __init__(self, path: Path | str | None = None):
        self.net = ScorerNet().eval()
        path = path or Path(__file__).parent / "data" / "scorer.safetensors"
        self.net.load_state_dict({k: v.float() for k, v in load_file(path).items()})

    @torch.no_grad()
    def score(self, images) -> list[dict[str, float]]:
        """Args: images: PIL images or uint8 arrays, [64, 64, 3] each."""
        images = list(images)
        if not images:
            return []
        shown = self.net(_to_tensor(images)).softmax(-1)[:, :, 1:].flatten(1)  # order of IDS
        return [dict(zip(IDS, row, strict=True)) for row in shown.tolist()]
