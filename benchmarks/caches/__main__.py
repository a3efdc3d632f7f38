"""What each cache costs and changes, on the embedded testbed, beside fewer steps at the same cost.

    python -m cmlora_fast.benchmarks.caches                 # caches.json, and docs/caches.md
    python -m cmlora_fast.benchmarks.caches --only dpm++:20 # a part; parts known before stay

The deviation is that of the final latents from those of the same method without a cache, at the
same scheduler, number of steps and noise. Cost is counted: rows that ran, by their multiply-
accumulates, over those of an image of one adapter at as many steps.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cmlora_fast as cf
import diffusers
import torch
from cmlora_fast import eval as lab
from cmlora_fast import testbed
from cmlora_fast.eval.macs import macs_per_sample
from cmlora_fast.eval.paint import rows_of
from cmlora_fast.eval.samples import fewer_steps, without_cache
from cmlora_fast.eval.scorers.base import PRESENT
from cmlora_fast.eval.statistics import interval
from cmlora_fast.report import document, progress, provenance

from .page import write_page

RESULTS = Path(__file__).resolve().parents[1] / "results" / "caches.json"
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
}
STEPS = (12, 20, 30, 50)
COUNTS = (1, 3, 5)
COMBINATIONS, SEEDS = 2, 3  # of each number of adapters; of each combination, in one call
GUIDANCE = 7.5
STRENGTH = {cf.Merge: 0.7}  # of a sum; of means 1
BRANCH = {"cache_block_id": 0}  # the embedded model has one layer per block


@dataclass(frozen=True)
class Entry:
    """A method with a cache, and what it is called."""

    label: str
    method: Any


ENTRIES = (
    Entry("merge, features 3", cf.Merge(cache_interval=3, **BRANCH)),
    Entry("merge, features nonuniform", cf.Merge(cache_interval="nonuniform", **BRANCH)),
    Entry("merge, forecast", cf.Merge(cache="forecast")),
    Entry("Composite, features nonuniform", cf.Composite(cache_interval="nonuniform", **BRANCH)),
    Entry("Composite, forecast", cf.Composite(cache="forecast")),
    Entry("Composite, relay", cf.Composite(cache="relay")),
    Entry("CMLoRA, features (default)", cf.CMLoRA(**BRANCH)),
    Entry("CMLoRA, forecast", cf.CMLoRA(cache="forecast")),
    Entry("CMLoRA, relay", cf.CMLoRA(cache="relay")),
)


@dataclass(frozen=True)
class Painted:
    """The images of a combination: final latents (SEEDS, C, H, W), share of the concepts that each
    shows; rows of one image that ran whole and shallow."""

    latents: torch.Tensor
    shows: list[float]
    rows: tuple[float, float]


class Painter:
    """Paints with every LoRA of one style loaded; an image is painted once."""

    def __init__(self, scheduler: str, style: str = "anime"):
        self.pipe, self.style = testbed.load_pipeline(), style
        testbed.load_loras(self.pipe, style=style)
        self.pipe.set_progress_bar_config(disable=True)
        made, changes = SCHEDULERS[scheduler]
        self.pipe.scheduler = made.from_config(self.pipe.scheduler.config, **changes)
        self.scorer = testbed.Scorer()
        self._known: dict[tuple, Painted] = {}

    def paint(self, method: Any, names: tuple[str, ...], steps: int) -> Painted:
        key = repr(method), names, steps
        if key not in self._known:
            self._known[key] = self._paint(method, names, steps)
        return self._known[key]

    def _paint(self, method: Any, names: tuple[str, ...], steps: int) -> Painted:
        pipe, kept = self.pipe, []
        pipe.set_adapters([*names], [STRENGTH.get(type(method), 1.0)] * len(names))

        def keep(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            kept[:] = [tensors["latents"]]
            return tensors

        with cf.accelerate(pipe, method):
            images = pipe(
                testbed.prompt(names, self.style),
                negative_prompt=testbed.NEGATIVE_PROMPT,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                num_images_per_prompt=SEEDS,
                generator=[torch.Generator().manual_seed(seed) for seed in range(SEEDS)],
                callback_on_step_end=keep,
            ).images
            ran = rows_of(cf.summary(pipe))
        found = self.scorer.score(images, self.style)
        shows = [fmean(told[name] > PRESENT for name in names) for told in found]
        rows = ran["full_rows"] / SEEDS, ran["shallow_rows"] / SEEDS
        return Painted(kept[0], shows, rows)


def measure(scheduler: str, steps: int, advance: Any) -> Iterator[dict[str, Any]]:
    """A record per number of adapters and entry, and one of fewer steps beside each."""
    painter, bed = Painter(scheduler), lab.embedded("anime")
    # Pixels are twice the testbed's, whose latents are finer.
    macs = macs_per_sample(dict(painter.pipe.unet.config), 128, 128, ENTRIES[0].method)
    shallow = macs["shallow"] / macs["full"]
    for count in COUNTS:
        every = lab.generate_combinations(bed.info, count)
        combinations = [
            tuple(entry.id for entry in combination)
            for combination in lab.sample(every, f"0:{COMBINATIONS}")
        ]
        for entry in ENTRIES:
            if count == 1 and not isinstance(entry.method, cf.Merge):
                continue  # one adapter: the same
            fewer = fewer_steps(entry.method, combinations[0], steps, shallow)
            plain = without_cache(entry.method)
            told = {"scheduler": scheduler, "steps": steps, "adapters": count}
            for label, method, T in (
                (entry.label, entry.method, steps),
                (f"{entry.label}: fewer steps", plain, fewer),
            ):
                images = [
                    (painter.paint(method, c, T), painter.paint(plain, c, steps))
                    for c in combinations
                ]
                yield told | {"label": label, "ran": T, **_summed(images, shallow, steps)}
            advance()


def _summed(
    images: Sequence[tuple[Painted, Painted]], shallow: float, steps: int
) -> dict[str, Any]:
    deviations = [
        float((ours - theirs).norm() / theirs.norm())
        for got, twin in images
        for ours, theirs in zip(got.latents, twin.latents, strict=True)
    ]
    costs = [(got.rows[0] + shallow * got.rows[1]) / (2 * steps) for got, _ in images]
    return {
        "deviation": fmean(deviations),
        "deviation_interval": interval(deviations),
        "deviations": [round(deviation, 5) for deviation in deviations],
        "cost": fmean(costs),
        "recall": fmean(share for got, _ in images for share in got.shows),
        "recall_uncached": fmean(share for _, twin in images for share in twin.shows),
        "images": len(deviations),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="parts as scheduler:steps, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="write the page of --out here, and nothing else")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(json.loads(arguments.out.read_text()), arguments.page)
        return
    parts = [(s, T) for s in SCHEDULERS for T in STEPS]
    if arguments.only:
        asked = [tuple(part.rsplit(":", 1)) for part in arguments.only.split(",")]
        parts = [(s, int(T)) for s, T in asked]
    known = json.loads(arguments.out.read_text())["cells"] if arguments.out.exists() else []
    cells = [c for c in known if (c["scheduler"], c["steps"]) not in parts]
    torch.set_num_threads(1)  # its layers are too small to share
    warnings.simplefilter("ignore")
    total = len(parts) * sum(len(ENTRIES) if N > 1 else 3 for N in COUNTS)
    with progress(total, "entries") as advance:
        for scheduler, steps in parts:
            cells += measure(scheduler, steps, advance)
            given = {"combinations": COMBINATIONS, "seeds": SEEDS, "guidance_scale": GUIDANCE}
            report = document("caches", given, **provenance(), cells=cells)
            arguments.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
