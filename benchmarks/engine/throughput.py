"""Images per second, latency and memory against what a user can turn, on a CPU or a GPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cmlora_fast as cf
import torch

from ..memory import peak_growth
from ..models import call_inputs, load_adapters, sd_pipeline
from ..spread import quartiles

__all__ = ["METHODS", "Setting", "combinations", "run"]

METHODS = {
    "lossless": None,
    "merge": cf.Merge(cache_interval=3),
    "switch": cf.Switch(),
    "composite": cf.Composite(),
    "cmlora": cf.CMLoRA(),
}
Advance = Callable[..., None]


@dataclass(frozen=True)
class Setting:
    """One combination of knobs; ``threads`` None leaves torch's choice."""

    adapters: int
    method: str
    weights: str
    max_rows: int | None
    threads: int | None
    images: int

    @property
    def label(self) -> str:
        """Everything but the images per call, in words."""
        words = [f"{self.method}, N={self.adapters}", self.weights]
        words += [] if self.max_rows is None else [f"max_rows={self.max_rows}"]
        words += [] if self.threads is None else [f"{self.threads} threads"]
        return ", ".join(words)


def combinations(
    adapters: Sequence[int],
    methods: Sequence[str],
    weights: Sequence[str],
    max_rows: Sequence[int | None],
    threads: Sequence[int | None],
    images: Sequence[int],
) -> list[Setting]:
    """Every combination, images per call fastest."""
    each = itertools.product(adapters, methods, weights, max_rows, threads, images)
    return [Setting(*values) for values in each]


def run(
    settings: Sequence[Setting],
    *,
    channels: tuple[int, ...],
    latents: int,
    steps: int,
    rounds: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    advance: Advance = lambda amount=1, description=None: None,
) -> list[dict[str, Any]]:
    """A record per setting: seconds of a call, images per second, peak memory, weight mode.

    Args:
        settings: What to measure, as ``combinations`` gives it.
        channels: Of the UNet's blocks, in the topology of Stable Diffusion 1.5.
        latents: Sides of the latents.
        steps: Denoising steps, guided.
        rounds: Timed calls of each setting.
        device: "cpu" or "cuda".
        dtype: Of the UNet and its adapters.
        advance: Called for every setting.
    """
    records = []
    threads = torch.get_num_threads()
    try:
        for count, own in itertools.groupby(settings, lambda setting: setting.adapters):
            pipe = sd_pipeline(channels, dtype)
            load_adapters(pipe, count)
            pipe.to(device)
            for setting in own:
                advance(0, description=f"{setting.label}, {setting.images} per call")
                torch.set_num_threads(setting.threads or threads)
                records.append(_measure(pipe, setting, latents, steps, rounds))
                advance()
    finally:
        torch.set_num_threads(threads)
    return records


def _measure(pipe, setting: Setting, latents: int, steps: int, rounds: int) -> dict[str, Any]:
    """The first call folds the weights and is not timed; it is the one whose memory counts."""
    device = pipe.unet.device
    inputs = call_inputs(pipe, latents, steps, setting.images)
    inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
    method = METHODS[setting.method]
    with cf.accelerate(pipe, method, weights=setting.weights, max_rows=setting.max_rows):
        peak = peak_growth(lambda: pipe(**inputs), device)
        weights = cf.summary(pipe).weights
        seconds = list(_timed(lambda: pipe(**inputs), rounds, device))
    spread = quartiles(seconds)
    return {
        **asdict(setting),
        "setting": setting.label,
        "seconds": seconds,
        **spread,
        "images_per_second": setting.images / spread["median"],
        "peak_bytes": peak,
        "weight_mode": weights["mode"],
        "weight_bytes": weights["bytes"],
        "weight_seconds": weights["seconds"],
    }


def _timed(call: Callable[[], object], rounds: int, device: torch.device) -> Iterator[float]:
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - started
