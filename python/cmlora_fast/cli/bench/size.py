"""How large the measured pipelines are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["CHANNELS", "Size"]

CHANNELS = {
    "half": (160, 320, 640, 640),  # of each block; "full" is Stable Diffusion 1.5 itself
    "full": (320, 640, 1280, 1280),
    "tiny": (32, 32, 64, 64),
}


@dataclass(frozen=True)
class Size:
    """A UNet of SD 1.5's topology by its name in CHANNELS, the latents' sides, the steps."""

    name: str
    latents: int
    steps: int

    @property
    def given(self) -> dict[str, Any]:
        """As the benchmarks take it."""
        return {"channels": CHANNELS[self.name], "latents": self.latents, "steps": self.steps}
