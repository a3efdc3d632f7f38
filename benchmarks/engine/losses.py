"""Where the seconds of an image go, by kind of layer, beside the least that its work could take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cmlora_fast as cf
from torch.profiler import ProfilerActivity, profile, record_function

from .contenders import Stage
from .limits import best_rates, flops_by_kind, limit_seconds

__all__ = ["run"]

Advance = Callable[..., None]
KINDS = {
    "convolution": ("aten::mkldnn_convolution",),  # on small images it is a linear product
    "linear": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("attention",),
    "norm": ("group_norm", "aten::native_group_norm", "aten::native_layer_norm"),
    "elementwise": ("geglu", "combine_", "aten::silu", "aten::add", "aten::div", "aten::mul"),
    "layout": ("aten::cat", "aten::copy_", "cache_refresh_", "aten::upsample_nearest2d"),
}
# Torch's profiler sees its own only.
OWN_OPS = [key for keys in KINDS.values() for key in keys if key in cf.ops.__all__]


def run(
    *,
    channels: tuple[int, ...],
    latents: int,
    steps: int,
    adapters: int,
    names: Sequence[str],
    advance: Advance,
) -> dict[str, Any]:
    """Seconds and limit of every kind of layer, in one image of each contender of ours.

    Args:
        channels, latents, steps: As for ``pipeline.run``.
        adapters: How many.
        names: Contenders; those that are not ours are left out.
        advance: Called for every contender.
    """
    stage = Stage(channels, latents, adapters)
    unet = stage.plain.unet
    work, rates = flops_by_kind(unet, latents), best_rates(unet.dtype, unet.device)
    results = []
    for name in names:
        advance(0, description=name)
        if stage.pipe_of(name) is not None:
            results.append(_losses(stage, name, steps, work, rates))
        advance()
    return {"rates": rates, "work": work, "results": results}


def _losses(stage: Stage, name: str, steps: int, work: dict, rates: dict) -> dict[str, Any]:
    stage.enter(name)
    stage.paint(name, steps)  # folds, and what is set up once
    started = time.perf_counter()
    stage.paint(name, steps)
    whole = time.perf_counter() - started
    with _named(OWN_OPS), profile(activities=[ProfilerActivity.CPU]) as recorded:
        stage.paint(name, steps)
    stage.leave(name)
    ran = cf.summary(stage.pipe_of(name)).steps
    rows = sum(step.full_rows for step in ran), sum(step.shallow_rows for step in ran)
    events = {event.key: event for event in recorded.key_averages()}
    kinds = []
    for kind, keys in KINDS.items():
        found = [events[key] for key in keys if key in events]
        of_kind = {part: flops.get(kind, 0) for part, flops in work.items()}
        kinds.append(
            {
                "kind": kind,
                "calls": sum(event.count for event in found),
                "seconds": sum(event.self_cpu_time_total for event in found) / 1e6,
                "limit": limit_seconds(*rows, of_kind, rates),
            }
        )
    rest = whole - sum(kind["seconds"] for kind in kinds)
    kinds.append({"kind": "everything else", "calls": None, "seconds": rest, "limit": 0.0})
    return {"contender": name, "adapters": len(stage.names), "seconds": whole, "kinds": kinds}


@contextmanager
def _named(ops: Sequence[str]) -> Iterator[None]:
    """Our own ops appear in the profile under their names."""
    before = {name: getattr(cf.ops, name) for name in ops}

    def named(name: str):
        def call(*args, **kwargs):
            with record_function(name):
                return before[name](*args, **kwargs)

        return call

    try:
        for name in ops:
            setattr(cf.ops, name, named(name))
        yield
    finally:
        for name, op in before.items():
            setattr(cf.ops, name, op)
