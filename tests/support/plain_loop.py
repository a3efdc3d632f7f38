"""The benchmarks' plain CLoRA loop, its steps kept in the layout of the recordings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cmlora_fast.benchmarks.clora.loop import CLoRALoop, Step
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """What a run leaves behind: latents [T, C, h, w], maps [T, J, r, q, 77], masks [T, J, h, w]."""

    steps: tuple[Step, ...]

    @property
    def losses(self) -> list[float]:
        return [loss for step in self.steps for loss in step.losses]

    def stacked(self, name: str) -> Tensor:
        found = torch.stack([getattr(step, name) for step in self.steps])
        return found[:, 0] if name == "latents" else found


class PlainLoop(CLoRALoop):
    def run(self, latents: Tensor, steps: int) -> Run:
        return Run(tuple(self.steps(latents, steps)))
