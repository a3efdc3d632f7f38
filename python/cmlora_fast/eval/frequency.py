"""How much high frequency each LoRA adds, and the order and partition that follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import cmlora_fast as cf

from .paint import activate

__all__ = ["FrequencyProfile", "partition_by_gap", "profile_order"]

BASE = "__base__"
Paint = Callable[[str, int], Any]


@dataclass(frozen=True)
class FrequencyProfile:
    """What ``profile_order`` measured.

    Args:
        order: Adapters, most added high frequency first.
        low_frequency: The low part of them: ``cf.CMLoRA(low_frequency=…)`` and ``cf.Switch`` take
            it.
        added: Adapter -> high-frequency mean of the latents minus that of the base model, averaged
            over steps, prompts and seeds.
        amplitude: Adapter or "__base__" -> high-frequency mean per step.
        profiles: Adapter or "__base__" -> radial profile (bins) per step.
    """

    order: tuple[str, ...]
    low_frequency: tuple[str, ...]
    added: dict[str, float]
    amplitude: dict[str, list[float]]
    profiles: dict[str, list[list[float]]]

    def save(self, path: str | Path) -> None:
        """JSON, meant to lie beside the LoRA files."""
        Path(path).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FrequencyProfile:
        """What ``save`` wrote; ValueError if it is something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            names = {key: tuple(data.pop(key)) for key in ("order", "low_frequency")}
            return cls(**names, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a frequency profile: {error}") from error


def profile_order(
    pipe: Any,
    adapters: Mapping[str, float],
    prompts: Sequence[str],
    paint: Paint,
    seeds: Sequence[int] = (0,),
    watch: Callable[[], None] = lambda: None,
) -> FrequencyProfile:
    """Measure each adapter alone against the base model, on equal prompts and seeds.

    The measure is the mean of the normalised radial amplitude of the latents above 0.2 of the
    largest radius, after every step; the paper's ΔH_0.2 as far as it is known (cmlora spec §1.3,
    §2.4). High and low are parted at the widest gap between neighbours.

    Args:
        pipe: With the adapters loaded; its active adapters change.
        adapters: Name -> weight.
        prompts: Each is painted with every adapter and without any.
        paint: Calls the pipeline for a prompt and a seed.
        seeds: Of every prompt.
        watch: Called after each image.
    """
    if not adapters or not prompts:
        raise ValueError("profile_order: expected at least one adapter and one prompt")
    amplitude, profiles = {}, {}
    for name in (BASE, *adapters):
        chosen = [] if name == BASE else [name]
        activate(pipe, chosen, [adapters[n] for n in chosen])
        seen, curves = [], []
        for prompt in prompts:
            for seed in seeds:
                with cf.accelerate(pipe, None, record=True):
                    paint(prompt, seed)
                    ran = cf.summary(pipe)
                seen.append([step.amplitude for step in ran.steps])
                curves.append(ran.profiles.numpy())
                watch()
        amplitude[name] = np.mean(seen, axis=0).tolist()
        profiles[name] = np.mean(curves, axis=0).tolist()
    base = np.mean(amplitude[BASE])
    added = {name: float(np.mean(amplitude[name]) - base) for name in adapters}
    order, low = partition_by_gap(added)
    return FrequencyProfile(order, low, added, amplitude, profiles)


def partition_by_gap(added: Mapping[str, float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names by falling value, and those below the widest gap; one name alone is high."""
    order = tuple(sorted(added, key=lambda name: -added[name]))
    if len(order) < 2:
        return order, ()
    gaps = [added[a] - added[b] for a, b in pairwise(order)]
    return order, order[gaps.index(max(gaps)) + 1 :]
