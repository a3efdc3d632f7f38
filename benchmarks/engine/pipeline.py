"""Seconds per image of every contender, in turns on one machine, and how far images move."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import cmlora_fast as cf
import torch
from torch import Tensor

from ..memory import peak_growth
from ..spread import quartiles, ratio
from .contenders import CONTENDERS, Stage
from .limits import best_rates, flops_per_row, limit_seconds

__all__ = ["compared", "merged", "painted_images", "run"]

WARM_UP_STEPS = 2  # a full and, with caching, a shallow one

Advance = Callable[..., None]


def run(
    *,
    channels: tuple[int, ...],
    latents: int,
    steps: int,
    adapters: Sequence[int],
    images: int,
    names: Sequence[str],
    advance: Advance = lambda amount=1, description=None: None,
) -> dict[str, Any]:
    """Raw measurements: the machine's rates, the work of a row, and one record per contender and N.

    Args:
        channels: Of the UNet's blocks, in the topology of Stable Diffusion 1.5.
        latents: Sides of the latents.
        steps: Denoising steps, guided.
        adapters: Numbers N of adapters, each measured by itself.
        images: Timed images of every contender.
        names: Contenders.
        advance: Called for every image.
    """
    records = []
    for count in adapters:
        gc.collect()
        stage = Stage(channels, latents, count)
        if not records:
            work = flops_per_row(stage.plain.unet, latents)
            rates = best_rates(stage.plain.unet.dtype, stage.plain.unet.device)
        records += _measure(stage, steps, images, names, advance)
    return {"rates": rates, "work": work, "results": records}


def painted_images(adapters: Sequence[int], images: int, names: Sequence[str]) -> int:
    """How many images ``run`` paints, warm-up included."""
    return len(adapters) * ((1 + images) * len(names) + len(_references(names)))


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``now`` with the images timed by an earlier part of the same measurement."""
    records = {_place(record): record for record in before["results"]}
    for record in now["results"]:
        earlier = records.get(_place(record))
        seconds = [] if earlier is None else earlier["seconds"]
        records[_place(record)] = {**record, "seconds": seconds + record["seconds"]}
    order = list(CONTENDERS)
    results = sorted(records.values(), key=lambda r: (r["adapters"], order.index(r["contender"])))
    rates = {k: max(value, before["rates"].get(k, 0.0)) for k, value in now["rates"].items()}
    return {**now, "rates": rates, "results": results}


def _place(record: dict[str, Any]) -> tuple[int, str]:
    return record["adapters"], record["contender"]


def _measure(
    stage: Stage, steps: int, images: int, names: Sequence[str], advance: Advance
) -> list[dict[str, Any]]:
    count = len(stage.names)
    stage.paint("plain", 1)  # what torch sets up at its first call is nobody's memory
    records: dict[str, dict[str, Any]] = {}
    for name in names:
        advance(0, description=f"N={count}: warm-up of {name}")
        found = _warm_up(stage, name)
        records[name] = {"adapters": count, "contender": name, **found, "seconds": []}
        advance()
    pictures = {}
    for name in _references(names):
        advance(0, description=f"N={count}: {name}")
        pictures[name] = _painted(stage, name, steps)[1]
        advance()
    for name in _ready(stage, [*names] * images):
        advance(0, description=f"N={count}: {name}")
        seconds, pictures[name] = _painted(stage, name, steps)
        records[name]["seconds"].append(seconds)
        records[name] |= _rows(stage, name, steps)
        advance()
    for name, record in records.items():
        record |= _differences(name, pictures)
    stage.rest()
    return list(records.values())


def _references(names: Sequence[str]) -> list[str]:
    """Uncached images that no contender paints."""
    wanted = {CONTENDERS[name].uncached for name in names} - {""}
    return sorted(wanted - set(names))


def _ready(stage: Stage, order: Sequence[str]):
    """The same names, the folds that all of them need built before the first."""
    for name in dict.fromkeys(order):
        if stage.pipe_of(name) is not None:
            stage.enter(name)
            stage.paint(name, 1)
            stage.leave(name)
    yield from order


def _warm_up(stage: Stage, name: str) -> dict[str, Any]:
    """Memory and folding time of a first image, nothing of ours being there before."""
    stage.rest()
    stage.enter(name)
    peak = peak_growth(lambda: stage.paint(name, WARM_UP_STEPS), stage.plain.unet.device)
    pipe = stage.pipe_of(name)
    weights = {} if pipe is None else cf.summary(pipe).weights
    stage.leave(name)
    return {
        "peak_bytes": peak,
        "weight_mode": weights.get("mode"),
        "weight_seconds": weights.get("seconds"),
        "weight_bytes": weights.get("bytes"),
    }


def _painted(stage: Stage, name: str, steps: int) -> tuple[float, Tensor]:
    """Seconds of one image, and its latents."""
    stage.enter(name)
    started = time.perf_counter()
    latents = stage.paint(name, steps)
    if latents.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    stage.leave(name)
    return seconds, latents


def _rows(stage: Stage, name: str, steps: int) -> dict[str, int]:
    """Samples of the image just painted that ran the whole UNet, and the shallow part only."""
    pipe = stage.pipe_of(name)
    if pipe is not None:
        ran = cf.summary(pipe).steps
        full, shallow = sum(s.full_rows for s in ran), sum(s.shallow_rows for s in ran)
    elif name in ("plain", "peft", "peft_one", "composite_loop"):
        each = len(stage.names) if name == "composite_loop" else 1
        full, shallow = 2 * steps * each, 0
    else:
        return {}  # caches features, and does not say how often
    return {"full_rows": full, "shallow_rows": shallow}


def _differences(name: str, pictures: dict[str, Tensor]) -> dict[str, Any]:
    """How far the final latents are from those that ought to be equal, and from the uncached."""
    contender = CONTENDERS[name]
    others = {
        "same_as": contender.against[0] if contender.same else "",
        "uncached": contender.uncached,
    }
    return {
        field: {"contender": other, **_distance(pictures[name], pictures[other])}
        for field, other in others.items()
        if other in pictures
    }


def _distance(got: Tensor, want: Tensor) -> dict[str, float]:
    got, want = got.double(), want.double()
    gap = (got - want).abs().max()
    return {"largest": gap.item(), "relative": (gap / want.abs().max()).item()}


def compared(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per record: quartiles, ratios of medians, the limit by work, and the share reached."""
    seconds = {_place(record): record["seconds"] for record in measured["results"]}
    rows = []
    for record in measured["results"]:
        count, name = _place(record)
        spread = quartiles(record["seconds"])
        row = {"adapters": count, "contender": name, "images": len(record["seconds"]), **spread}
        row["times_as_fast"] = {
            other: ratio(seconds[count, other], record["seconds"])
            for other in CONTENDERS[name].against
            if (count, other) in seconds
        }
        if "full_rows" in record:
            rows_run = record["full_rows"], record["shallow_rows"]
            row["limit"] = limit_seconds(*rows_run, measured["work"], measured["rates"])
            row["share_of_limit"] = row["limit"] / spread["median"]
        rows.append(row)
    return rows
