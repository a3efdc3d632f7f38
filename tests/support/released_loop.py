"""The released CMLoRA denoising loops with all their defects (cmlora spec §1.2-§1.7, §1.10).

Written from the specification alone, one adapter after the other, to check the engine's
``reference_compat`` where no trace was recorded.
"""

from __future__ import annotations

import numpy as np
import torch

from .loops import CachedUNet, denoise, only

HIGH = ("style_1", "style_2", "character_1", "character_2", "character_3")
HIGH += ("clothing_1", "clothing_2", "object_1", "object_2")
LOW = ("background_1", "background_2")


def schedule_steps(interval: int, T: int, uniform=True, center=None, pow=None) -> set[int]:
    """S of the spec; ``interval`` 0 is the non-uniform one."""
    if interval == 0:
        a, b = int(0.375 * T), int(0.875 * T)
        return {*range(0, a, 2), *range(a, b, 3), *range(b, T, 2)}
    if uniform:
        return set(range(0, T, interval))
    count, power = -(-T // interval), pow
    while power > 1:
        ends = [complex(edge) ** (1 / power) for edge in (-center, T - center)]
        points = np.linspace(*ends, count + 1) ** power
        inner = np.unique(points.real.astype(np.int32))[1:-1]
        steps = {0, *(int(step) + center for step in inner)}
        if len(steps) == count == len(inner) + 1:
            return steps
        power -= 0.02
    raise ValueError("no schedule")


def released(pipe, inputs: dict, spec: dict) -> tuple[torch.Tensor, list[float]]:
    """Latents per step, and the measure after each step (online only)."""
    T, interval = inputs["num_inference_steps"], spec["interval"]
    options = {key: spec[key] for key in ("uniform", "center", "pow") if key in spec}
    S = schedule_steps(interval, T, **options)
    loop = _composite if spec["method"] == "composite" else _single_cache
    measured: list[float] = []
    predict, after = loop(pipe, inputs, spec, S, measured)
    return denoise(pipe, predict, inputs, after), measured


def _single_cache(pipe, inputs, spec, S, measured):
    """Merge, switch and no adapter: one cache whatever is active."""
    cached = CachedUNet(pipe.unet)
    names, active = spec["combo"], 0

    def predict(i, x, t, text):
        chosen = names if spec["method"] == "merge" else [names[active]]
        with only(pipe.unet, *((name, 1.0) for name in chosen)):
            reuse = spec["interval"] > 1 and i not in S
            return cached(x, t, encoder_hidden_states=text, reuse=reuse)

    def rotate(i, z):
        nonlocal active
        if spec["method"] == "switch" and i > 0 and i % spec.get("switch_step", 5) == 0:
            active = (active + 1) % len(names)

    return predict, rotate


def _composite(pipe, inputs, spec, S, measured):
    ids, kind = spec["combo"], spec["kind"]
    high = [name for name in ids if name in HIGH]
    low = [name for name in ids if name in LOW]
    order, R, N = high + low, len(high), len(ids)
    share = N / (N - 0.5 + N - 1)
    caches = [CachedUNet(pipe.unet) for _ in order]
    turn, m = 0, 1.0
    guided = inputs["guidance_scale"] > 1

    def predict(i, x, t, text):
        nonlocal turn
        early = not low or (i <= 120 if kind == "offline" else m >= spec.get("g", 0.40))
        if kind == "async":
            if i in S:
                caches[turn % len(order)].feature = None
            turn += i in range(20, 201, 20)
            dominant = (turn - 1) % len(order)
        else:
            if i in S:
                if early:
                    caches[turn % R].feature = None
                turn += 1
            dominant = (turn - 1) % R + (not early)
        predictions = []
        for j, name in enumerate(order):
            with only(pipe.unet, (name, 1.0)):
                reuse = spec["interval"] > 1
                eps = caches[j](x, t, encoder_hidden_states=text, reuse=reuse)
            predictions.append(eps * (share * (N - 0.5) if j == dominant else share))
        return torch.stack(predictions).mean(0) if guided else eps

    def measure(i, z):
        nonlocal m
        if kind == "online":
            m = amplitude(z)
            measured.append(m)

    return predict, measure


def amplitude(z: torch.Tensor, first_bin: int = 80) -> float:
    """Mean of the normalised radial profile from ``first_bin`` on; nan without such bins."""
    plane = z[0].mean(0).numpy()
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(plane)))
    H, W = plane.shape
    y, x = np.indices(plane.shape)
    radius = np.sqrt((x - W // 2) ** 2 + (y - H // 2) ** 2).astype(int)
    profile = np.array([spectrum[radius == r].mean() for r in range(radius.max() + 1)])
    band = (profile / profile.max())[first_bin:]
    return float(band.mean()) if len(band) else float("nan")
