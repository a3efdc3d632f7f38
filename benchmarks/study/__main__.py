"""The study: which method composes best on the embedded testbed, and what CMLoRA's choices do.

    python -m cmlora_fast.benchmarks.study           # paints, scores: study-shows.json
    python -m cmlora_fast.benchmarks.study --add     # only what study-shows.json lacks
    python -m cmlora_fast.benchmarks.study --time    # on an idle machine: study-seconds.json
    python -m cmlora_fast.benchmarks.study.page      # both -> docs/study.md and its pictures

Images lie in ``out/study`` by content; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import cmlora_fast as cf
import torch
from cmlora_fast import eval as lab
from cmlora_fast import testbed
from cmlora_fast.eval.macs import macs_per_sample
from cmlora_fast.eval.paint import activate, call, paint, rows_of
from cmlora_fast.eval.presets import plain_preset
from cmlora_fast.eval.run import score_all
from cmlora_fast.eval.samples import jobs_of
from cmlora_fast.eval.scorers import EmbeddedScorer
from cmlora_fast.eval.scorers.base import PRESENT
from cmlora_fast.report import document, progress, provenance
from cmlora_fast.testbed import DATA

from .sets import CLORA, PARTS, Part

__all__ = ["RESULTS", "SECONDS", "SHOWS", "generation"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
SHOWS, SECONDS = "study-shows.json", "study-seconds.json"
WORK = Path("out/study")
Known = dict[tuple[str, int, str, float], dict[str, Any]]  # lines that were painted before
TIMED = PARTS[1:3]  # a strength changes no time, and a check repeats settings
REPEATS = 2  # images, of which the fastest counts: the first builds what the second keeps


def generation() -> lab.Generation:
    """What all images share: what ``cmlora eval`` would take for the embedded testbed."""
    preset = plain_preset(lab.EMBEDDED)
    return lab.Generation(
        preset.model,
        lab.model_digest(DATA / "pipeline"),
        negative_prompt=testbed.NEGATIVE_PROMPT,
        steps=preset.steps,
        guidance_scale=preset.guidance_scale,
    )


def load(style: str) -> Any:
    pipe = testbed.load_pipeline()
    testbed.load_loras(pipe, style=style)
    return pipe


def samples_of(part: Part, style: str) -> list[lab.Sample]:
    """Every image of a part in one style; entries differ in method and strength."""
    bed = lab.embedded(style)
    made = []
    for count in part.counts:
        combinations = lab.sample(
            lab.generate_combinations(bed.info, count), part.half.combinations[count]
        )
        for entry in part.entries:
            candidate = lab.Candidate(_name(entry), entry.method, entry.loras)
            given = replace(generation(), lora_scale=entry.strength)
            made += lab.make_samples(bed, combinations, part.half.seeds, [candidate], given)
    return made


def _name(entry: Any) -> str:
    return f"{entry.label} × {entry.strength:g}"


def paint_all(
    pipe: Any, jobs: Sequence[lab.Job], store: lab.ImageStore, advance: Callable[[], None]
) -> None:
    """As ``cmlora eval`` paints them, but the seeds of a combination in one call.

    Twice as fast on a small model, and equal to single calls to rounding. A call that was
    interrupted is repeated whole, so that its images stay the same to the bit.
    """
    for _, group in groupby(jobs, lambda job: replace(job, seed=0)):
        together = list(group)
        if not all(store.has(job) for job in together):
            _paint(pipe, together, store)
        for _ in together:
            advance()


def _paint(pipe: Any, jobs: Sequence[lab.Job], store: lab.ImageStore) -> None:
    first = jobs[0]
    activate(pipe, [a.name for a in first.adapters], [a.weight for a in first.adapters])
    with cf.accelerate(pipe, first.method if first.adapters else None):
        images = paint(pipe, first, [job.seed for job in jobs])
        ran = rows_of(cf.summary(pipe))
    rows = {kind: count / len(jobs) for kind, count in ran.items()}
    for job, image in zip(jobs, images, strict=True):
        store.add(job, image, rows)


def shows(
    part: Part, store: lab.ImageStore, advance: Callable[[], None], known: Known
) -> list[dict[str, Any]]:
    """A record per entry and count: which concepts each image shows, and what it cost."""
    found = {
        (count, _name(entry)): _cell(known.get((part.name, count, entry.label, entry.strength)))
        for count in part.counts
        for entry in part.entries
    }
    for style in testbed.STYLES:
        samples = missing(part, style, known)
        scorer = EmbeddedScorer(style)
        scorer.check()
        pipe = load(style)
        paint_all(pipe, jobs_of(samples), store, advance)
        for sample, scores in zip(samples, score_all(samples, [scorer], store), strict=True):
            cell = found[len(sample.combination), sample.candidate]
            ran = store.record(sample.job)
            marks = "".join(str(int(p > PRESENT)) for p in scores["concepts"].values())
            cell["shows"].setdefault(_group(sample, style), []).append(marks)
            for rows in ("full_rows", "shallow_rows"):
                cell[rows].append(ran[rows])
    return [
        _record(part, count, entry, found[count, _name(entry)])
        for count in part.counts
        for entry in part.entries
    ]


def missing(part: Part, style: str, known: Known) -> list[lab.Sample]:
    """The samples of combinations that ``known`` lacks."""
    done = {
        (count, _name(entry)): known.get((part.name, count, entry.label, entry.strength), {})
        for count in part.counts
        for entry in part.entries
    }
    return [
        sample
        for sample in samples_of(part, style)
        if _group(sample, style)
        not in done[len(sample.combination), sample.candidate].get("shows", {})
    ]


def _group(sample: lab.Sample, style: str) -> str:
    return f"{style}/{'+'.join(sample.group)}"


def _cell(known: dict[str, Any] | None) -> dict[str, Any]:
    """Where the images of a line are gathered: empty, or begun with what is known."""
    if known is None:
        return {"full_rows": [], "shallow_rows": [], "shows": {}}
    images = sum(map(len, known["shows"].values()))
    rows = {kind: [known[kind]] * images for kind in ("full_rows", "shallow_rows")}
    return {**rows, "shows": dict(known["shows"])}


def _record(part: Part, count: int, entry: Any, cell: dict[str, Any]) -> dict[str, Any]:
    """``shows``: combination -> a word of 0 and 1 per seed, a digit per adapter in order."""
    rows = {kind: median(cell[f"{kind}_rows"]) for kind in ("full", "shallow")}
    each = unet_macs(entry.method)
    gmacs = round(sum(rows[kind] * each[kind] for kind in rows) / 1e9, 2)
    return {
        "part": part.name,
        "adapters": count,
        "label": entry.label,
        "strength": entry.strength,
        **{f"{kind}_rows": rows[kind] for kind in rows},
        "gmacs": None if entry.method is CLORA else gmacs,  # its updates are more than rows
        "shows": cell["shows"],
    }


@cache
def _unet_config() -> dict[str, Any]:
    return json.loads((DATA / "pipeline" / "unet" / "config.json").read_text())


def unet_macs(method: Any) -> dict[str, int]:
    """Multiply-accumulates of a row; pixels are twice the testbed's, whose latents are finer."""
    return macs_per_sample(_unet_config(), 128, 128, method)


def timed(advance: Callable[[], None], known: Sequence[dict]) -> Iterator[dict[str, Any]]:
    """Seconds of single images, of every method and setting, behind those that are known."""
    before = {(t["part"], t["adapters"], t["label"]): t["seconds"] for t in known}
    style = testbed.STYLES[0]
    pipe = load(style)
    for part in TIMED:
        firsts: dict[tuple[int, str], lab.Job] = {}
        for sample in samples_of(part, style):
            firsts.setdefault((len(sample.combination), sample.candidate), sample.job)
        for count in part.counts:
            for entry in part.entries:
                job = firsts[count, _name(entry)]
                seconds = before.get((part.name, count, entry.label), [])
                seconds = seconds + [_seconds(pipe, job) for _ in range(REPEATS)]
                advance()
                told = {"part": part.name, "adapters": count, "label": entry.label}
                yield {**told, "seconds": seconds}


def _seconds(pipe: Any, job: lab.Job) -> float:
    started = time.perf_counter()
    call(pipe, job)
    return time.perf_counter() - started


def _recorded(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def write(name: str, results: dict[str, Any]) -> None:
    facts = {"generation": generation().__dict__, "threads": torch.get_num_threads()}
    report = document("study", facts, **provenance(), **results)
    path = RESULTS / name
    path.write_text(json.dumps(report, indent=None, separators=(",", ":")) + "\n")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="measure seconds instead")
    parser.add_argument("--add", action="store_true", help="keep the results there are")
    args = parser.parse_args()
    if args.time:
        entries = sum(len(part.counts) * len(part.entries) for part in TIMED)
        with progress(entries, "timing") as advance:
            before = _recorded(SECONDS)["timings"] if args.add else []
            write(SECONDS, {"timings": list(timed(advance, before))})
        return
    before = _recorded(SHOWS) if args.add else {"cells": []}
    known = {(c["part"], c["adapters"], c["label"], c["strength"]): c for c in before["cells"]}
    count = sum(len(jobs_of(missing(p, s, known))) for p in PARTS for s in testbed.STYLES)
    store = lab.ImageStore(WORK)
    with progress(count, "images") as advance:
        cells = [cell for part in PARTS for cell in shows(part, store, advance, known)]
    halves = {
        part.name: {"half": part.half.name, "combinations": part.half.combinations,
                    "seeds": list(part.half.seeds)}
        for part in PARTS
    }  # fmt: skip
    begun = {"added_to": before["commit"]} if args.add else {}
    write(SHOWS, {**begun, "parts": halves, "cells": cells})


if __name__ == "__main__":
    main()
