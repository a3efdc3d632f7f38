"""Whole pipelines of the GPU benchmark: ours, and what a user would do instead.

A step is the slope between calls of few and of many steps; what a call costs beside its steps is
the rest.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cmlora_fast as cf
import torch

from ..clora.__main__ import method_of
from ..models import call_inputs, load_adapters, sd_pipeline, sdxl_pipeline
from .timing import wait

RANK = 32
REPEATS = 3
CONCEPTS, REFINEMENTS = 2, 5


@dataclass(frozen=True)
class Model:
    """``short``, ``long``: steps of the two calls that a slope is taken of."""

    name: str
    build: Callable
    channels: tuple[int, ...]
    size: int
    short: int
    long: int


MODELS = {
    "sd15": Model("SD 1.5 512x512", sd_pipeline, (320, 640, 1280, 1280), 64, 10, 30),
    "sdxl": Model("SDXL 1024x1024", sdxl_pipeline, (320, 640, 1280), 128, 5, 15),
}
SMALL = {
    "sd15": Model("SD 1.5 small", sd_pipeline, (32, 32, 32, 32), 8, 2, 4),
    "sdxl": Model("SDXL small", sdxl_pipeline, (64, 64, 64), 16, 2, 4),
}


@dataclass(frozen=True)
class Variant:
    """``enabled``: arguments of ``cf.enable``; None: theirs. ``prepare`` runs before, ``undo``
    after the measurement.
    """

    name: str
    adapters: int
    enabled: dict | None = None
    prepare: Callable | None = None
    undo: Callable | None = None


def _fuse(pipe) -> None:
    for module in _peft_layers(pipe):
        module.merge()


def _unfuse(pipe) -> None:
    for module in _peft_layers(pipe):
        module.unmerge()


def _peft_layers(pipe) -> list:
    return [m for m in pipe.unet.modules() if hasattr(m, "merge") and hasattr(m, "base_layer")]


def _compile(pipe) -> None:
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.unet.compile(mode="reduce-overhead" if pipe.unet.device.type == "cuda" else None)


# What tells most first: a lease may end anywhere.
OURS = (
    Variant("lossless", 1, {}),
    Variant("lossless", 5, {}),
    Variant("delta", 1, {"weights": "delta"}),
    Variant("CMLoRA offline", 5, {"method": "cmlora"}),
    Variant("delta", 5, {"weights": "delta"}),
    Variant("Composite", 5, {"method": "composite"}),
    Variant("CMLoRA online", 5, {"method": cf.CMLoRA(variant="online")}),
    Variant("CMLoRA offline, delta", 5, {"method": "cmlora", "weights": "delta"}),
    Variant("lossless, no graphs", 1, {"graphs": "off"}),
)
THEIRS = (
    Variant("plain, eager", 0),
    Variant("PEFT fused, eager", 1, None, _fuse, _unfuse),
    Variant("PEFT, eager", 1),
)
PEER = Variant("plain, channels-last, compiled", 0, None, _compile)
CLORA = (
    Variant("CLoRA", CONCEPTS, {"method": method_of(
        {"concepts": CONCEPTS, "refinements": REFINEMENTS})}),
    Variant("CLoRA, no graphs", CONCEPTS, {"graphs": "off", "method": method_of(
        {"concepts": CONCEPTS, "refinements": REFINEMENTS})}),
)  # fmt: skip
IMAGES = (1, 2, 4, 8)  # of a call
PROFILED = OURS[:5]


def load(model: Model, device: torch.device):
    with device:  # billions of random numbers
        pipe = model.build(model.channels, _dtype(device))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # its tables: host
    return pipe.to(device)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def call_arguments(pipe, size: int, steps: int, images: int = 1) -> dict:
    device = pipe.unet.device
    return {
        key: value.to(device) if torch.is_tensor(value) else value
        for key, value in call_inputs(pipe, size, steps, images).items()
    }


class Adapters:
    """Loads as many adapters as a variant wants, if they are not loaded already."""

    def __init__(self, pipe, small: bool):
        self._pipe, self._rank, self._count = pipe, 4 if small else RANK, 0

    def load(self, count: int) -> None:
        unet = self._pipe.unet
        if count and count != self._count:
            load_adapters(self._pipe, count, self._rank)
            unet.to(unet.device, _dtype(unet.device))
        elif count:
            unet.enable_adapters()
        elif self._count:
            unet.disable_adapters()
        self._count = count or self._count


@contextlib.contextmanager
def enabled(pipe, variant: Variant) -> Iterator[None]:
    if variant.prepare is not None:
        variant.prepare(pipe)
    try:
        ours = variant.enabled is not None
        with cf.accelerate(pipe, **variant.enabled) if ours else contextlib.nullcontext():
            yield
    finally:
        if variant.undo is not None:
            variant.undo(pipe)


@torch.inference_mode()
def measure(pipe, model: Model, variant: Variant, images: int = 1) -> dict:
    """Milliseconds: per step, per call beside its steps, per call of many steps, of the first."""
    device = pipe.unet.device
    short, long = (call_arguments(pipe, model.size, n, images) for n in (model.short, model.long))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with enabled(pipe, variant):
        first = [_ms(lambda: pipe(**short), device) for _ in range(3)]
        few = [_ms(lambda: pipe(**short), device) for _ in range(REPEATS)]
        many = [_ms(lambda: pipe(**long), device) for _ in range(REPEATS)]
        found = _slope(model, few, many) | {"first_calls": first}
        if variant.enabled is not None:
            summary = cf.summary(pipe)
            found |= {"graphs": summary.graphs, "weights": summary.weights}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _slope(model: Model, few: list[float], many: list[float]) -> dict:
    low, high = statistics.median(few), statistics.median(many)
    step = (high - low) / (model.long - model.short)
    return {
        "step_ms": step,
        "fixed_ms": low - step * model.short,
        "image_ms": high,
        "steps": [model.short, model.long],
        "spread_ms": [[min(few), max(few)], [min(many), max(many)]],
    }


def _ms(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return 1e3 * (time.perf_counter() - start)
