"""``docs/caches.md`` from the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

__all__ = ["write_page"]

FEWER = ": fewer steps"
# `cmlora bench pipeline --steps 20 --adapters 3 --images 3 --contenders
# lossless,forecast,composite,composite_relay,cmlora,cmlora_relay`
TIMED = Path(__file__).resolve().parents[1] / "results"
TIMED = TIMED / "pipeline-half-forecasts-2026-11-27-amd-epyc.json"
TWINS = {  # what each leaves out work of
    "forecast": "lossless",
    "composite_relay": "composite",
    "cmlora": "composite",
    "cmlora_relay": "composite",
}
LABELS = {
    "forecast": "merge, forecast",
    "composite_relay": "Composite, relay",
    "cmlora": "CMLoRA, features (default)",
    "cmlora_relay": "CMLoRA, relay",
}
Cell = dict[str, Any]


def write_page(report: dict[str, Any], path: Path) -> None:
    """A table per method and scheduler, and what beats fewer steps."""
    cells = report["cells"]
    pieces = [_head(report), _verdicts(cells), _seconds(json.loads(TIMED.read_text()))]
    for scheduler in _values(cells, "scheduler"):
        pieces.append(f"## {scheduler}\n")
        for method in dict.fromkeys(cell["label"].split(",")[0] for cell in cells):
            mine = [
                c
                for c in cells
                if c["scheduler"] == scheduler and c["label"].split(",")[0] == method
            ]
            pieces.append(_table(method, mine))
    path.write_text("\n".join(pieces).rstrip() + "\n", encoding="utf-8")


def _head(report: dict[str, Any]) -> str:
    given = report["arguments"]
    images = given["combinations"] * given["seeds"]
    return f"""# Which cache?

What is kept from step to step, on the embedded testbed: `cache="features"` (deep features, as
DeepCache), `cache="forecast"` (UNet calls are skipped, x₀ is followed along a line),
`cache="relay"` (the adapters of Composite and CMLoRA take turns, the others are forecast).
`python -m cmlora_fast.benchmarks.caches` measures, and writes this page. **Nothing here speaks of
SD 1.5 or SDXL.**

- *deviation*: distance of the final latents from those of the same method without a cache, same
  scheduler, steps and noise, over their size: mean of {images} images ({given["combinations"]}
  combinations, {given["seeds"]} seeds each), with a 95 % bootstrap interval.
- *cost*: UNet calls in images of one adapter at as many steps, counted: rows that ran, by their
  multiply-accumulates.
- *fewer steps*: the method without a cache, at so many steps that it costs the same. A cache that
  deviates more is not worth having: take fewer steps.
- *recall*: per cent of the concepts shown, by the testbed's scorer, and without a cache.
- Merge at weights of 0.7, the others at 1; guidance {given["guidance_scale"]}. What cost means in
  seconds stands below.
"""


def _verdicts(cells: Sequence[Cell]) -> str:
    lines = [
        "## In short",
        "",
        "Parts (scheduler, steps, adapters) in which a cache deviates less than fewer steps:",
        "",
    ]
    lines += ["| | " + " | ".join(f"{T} steps" for T in _values(cells, "steps")) + " |"]
    lines += ["| --- |" + " --- |" * len(_values(cells, "steps"))]
    for label in _values([c for c in cells if not c["label"].endswith(FEWER)], "label"):
        found = []
        for T in _values(cells, "steps"):
            pairs = [
                (c["deviation"], _fewer(cells, c)["deviation"])
                for c in cells
                if c["label"] == label and c["steps"] == T
            ]
            won = sum(ours < theirs for ours, theirs in pairs)
            ratio = fmean(a / max(b, 1e-9) for a, b in pairs) if pairs else 0.0
            found.append(f"{won} of {len(pairs)} (× {ratio:.2f})")
        lines.append(f"| {label} | " + " | ".join(found) + " |")
    lines += [
        "",
        "× is its deviation over that of fewer steps, mean of the parts: below 1 it pays.",
        "",
        *_choice(cells),
    ]
    return "\n".join(lines)


def _choice(cells: Sequence[Cell]) -> list[str]:
    relay = [c for c in cells if c["label"] == "CMLoRA, relay"]
    place = ("scheduler", "steps", "adapters")
    features = {
        tuple(c[name] for name in place): c
        for c in cells
        if c["label"] == "CMLoRA, features (default)"
    }
    pairs = [(c, features[tuple(c[name] for name in place)]) for c in relay]
    won = sum(a["deviation"] < b["deviation"] and a["cost"] < b["cost"] for a, b in pairs)
    return [
        f"CMLoRA by relay deviates less than by features, at less cost, in {won} of {len(pairs)} "
        "parts.",
        "`cf.CMLoRA()` stays the published method, which reuses features; the one to take is",
        '`cf.CMLoRA(cache="relay")`. For a merge and for Composite take forecasts, or relay, where',
        "Composite shall cost little more than one adapter. Recall tells none of them from its",
        "uncached twin.",
        "",
    ]


def _seconds(bench: dict[str, Any]) -> str:
    rows = {row["contender"]: row for row in bench["rows"]}
    ran = {row["contender"]: row for row in bench["results"]}
    work, given, machine = bench["work"], bench["arguments"], bench["machine"]

    def counted(name: str) -> float:
        row = ran[name]
        return row["full_rows"] * work["full"] + row["shallow_rows"] * work["shallow"]

    lines = [
        "## In seconds",
        "",
        f"`cmlora bench pipeline`, {bench['date']}, commit {bench['commit']}: SD 1.5's layers at",
        f"half the channels, latents {given['latents']} x {given['latents']}, "
        f"{given['steps']} steps, {given['adapters'][0]} adapters, float32,",
        f"{given['threads']} threads of an {machine['processor']}; medians of {given['images']} "
        "images in turns, and quartiles.",
        "Saved: of the same image without a cache; by operations counted, and by the clock.",
        "",
        "| | seconds | without | counted | saved | of what is counted |",
        "| --- " * 6 + "|",
    ]
    for name, twin in TWINS.items():
        mine, theirs = rows[name], rows[twin]
        expected = 1 - counted(name) / counted(twin)
        saved = 1 - mine["median"] / theirs["median"]
        lines.append(
            f"| {LABELS[name]} | {mine['median']:.1f} [{mine['low']:.1f}, {mine['high']:.1f}] "
            f"| {theirs['median']:.1f} [{theirs['low']:.1f}, {theirs['high']:.1f}] "
            f"| {100 * expected:.0f} % | {100 * saved:.0f} % | {saved / expected:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _table(method: str, cells: Sequence[Cell]) -> str:
    lines = [f"### {method}", ""]
    lines += ["| steps, adapters | cache | deviation | cost | fewer steps | recall |"]
    lines += ["| --- " * 6 + "|"]
    for cell in cells:
        if cell["label"].endswith(FEWER):
            continue
        fewer, (low, high) = _fewer(cells, cell), cell["deviation_interval"]
        lines.append(
            f"| {cell['steps']}, {cell['adapters']} | {cell['label'].split(', ')[1]} "
            f"| {cell['deviation']:.3f} [{low:.3f}, {high:.3f}] | {cell['cost']:.2f} "
            f"| {fewer['ran']}: {fewer['deviation']:.3f} "
            f"| {100 * cell['recall']:.0f} ({100 * cell['recall_uncached']:.0f}) |"
        )
    return "\n".join(lines) + "\n"


def _fewer(cells: Sequence[Cell], cell: Cell) -> Cell:
    same = ("scheduler", "steps", "adapters")
    return next(
        c
        for c in cells
        if c["label"] == cell["label"] + FEWER and all(c[name] == cell[name] for name in same)
    )


def _values(cells: Sequence[Cell], name: str) -> list[Any]:
    found = list(dict.fromkeys(cell[name] for cell in cells))
    return sorted(found) if name == "steps" else found
