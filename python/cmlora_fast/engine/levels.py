"""How much signal and noise the UNet's input has at every call, as the scheduler says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Level", "noise_levels"]

LEAST = 1e-8
KINDS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Level:
    """One UNet call: its input is ``signal · x₀ + noise · ε``, with squares that sum to 1.

    Args:
        kind: What the UNet predicts: "epsilon" (ε), "v_prediction" (signal · ε - noise · x₀) or
            "sample" (x₀).
    """

    kind: str
    signal: float
    noise: float

    @property
    def sigma(self) -> float:
        """Noise of an unscaled image."""
        return self.noise / max(self.signal, LEAST)

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio."""
        return -math.log(max(self.sigma, LEAST))

    def clean(self, sample: Tensor, prediction: Tensor) -> Tensor:
        """x₀ in float32, of the UNet's input and its prediction."""
        sample, prediction = sample.float(), prediction.float()
        if self.kind == "epsilon":
            return (sample - self.noise * prediction) / self.signal
        if self.kind == "v_prediction":
            return self.signal * sample - self.noise * prediction
        return prediction

    def prediction(self, sample: Tensor, clean: Tensor) -> Tensor:
        """What the UNet would predict for this x₀, in the sample's dtype."""
        if self.kind == "epsilon":
            clean = (sample.float() - self.signal * clean) / self.noise
        elif self.kind == "v_prediction":
            clean = (self.signal * sample.float() - clean) / self.noise
        return clean.to(sample.dtype)


def noise_levels(scheduler: Any, calls: int) -> tuple[Level, ...]:
    """Those of the last ``calls`` UNet calls of the scheduler's time steps.

    Raises:
        ValueError: A scheduler that does not say what the UNet predicts, or of how much noise.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    kind = config.get("prediction_type")
    if kind not in KINDS:
        raise ValueError(
            f"scheduler: expected one whose prediction_type is one of {', '.join(KINDS)} for "
            f"forecasts; got {name} with {kind!r}"
        )
    signals = None if "sigma_data" in config else _signals(scheduler)
    if signals is None or len(signals) < calls:
        raise ValueError(
            f"scheduler: expected one with sigmas or alphas_cumprod for its time steps, of noise "
            f"that is added to a scaled image, for forecasts; got {name}"
        )
    return tuple(Level(kind, s, math.sqrt(max(0.0, 1 - s * s))) for s in signals[-calls:])


def _signals(scheduler: Any) -> list[float] | None:
    """The share of x₀ in the UNet's input, by time step."""
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, Tensor):
        return None
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) >= len(timesteps):
        return [1 / math.sqrt(1 + sigma * sigma) for sigma in _by_call(scheduler, sigmas)]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        return None
    places = timesteps.to("cpu", torch.int64).clamp(0, len(alphas) - 1)
    return alphas.to("cpu", torch.float64)[places].sqrt().tolist()


def _by_call(scheduler: Any, sigmas: Tensor) -> Sequence[float]:
    count = len(scheduler.timesteps)
    found = sigmas.to("cpu", torch.float64)[:count].tolist()
    between = getattr(scheduler, "sigmas_interpol", None)
    if isinstance(between, Tensor):  # KDPM2: the second evaluation of a step lies between two
        found[1::2] = between.to("cpu", torch.float64)[:count].tolist()[1::2]
    return found
