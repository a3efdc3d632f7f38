"""Pictures of the measurements, as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed; before pyplot is imported

from matplotlib import pyplot as plt

from .contenders import CONTENDERS

__all__ = ["cost_against_deviation", "images_per_call", "time_against_adapters"]

SIZE, DPI = (8.0, 6.0), 130
CAPTION = 105  # characters per line
OTHERS, OURS = "--", "-"  # line styles
RIVALS = (  # a baseline and ours in one colour
    ("peft", "lossless"),
    ("peft_one", "lossless_delta"),
    ("deepcache", "merge", "forecast"),
    ("plain", "switch"),
    ("composite_loop", "composite", "composite_pairs", "composite_relay"),
    ("cmlora_loop", "cmlora", "cmlora_pairs", "cmlora_relay"),
)
COLOURS = {name: f"C{i}" for i, rivals in enumerate(RIVALS) for name in rivals}
BASELINES = {rivals[0] for rivals in RIVALS}
MARKERS = {name: "osvD"[i] for rivals in RIVALS for i, name in enumerate(rivals)}


def time_against_adapters(rows: Sequence[dict[str, Any]], caption: str, path: Path) -> None:
    """Seconds per image over N, a line per contender; bars are quartiles."""
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    for name in CONTENDERS:
        own = [row for row in rows if row["contender"] == name]
        if not own:
            continue
        medians = [row["median"] for row in own]
        bars = [
            [row["median"] - row["low"] for row in own],
            [row["high"] - row["median"] for row in own],
        ]
        theirs = name in BASELINES
        axes.errorbar(
            [row["adapters"] for row in own],
            medians,
            yerr=bars,
            label=CONTENDERS[name].what,
            color=COLOURS[name],
            linestyle=OTHERS if theirs else OURS,
            marker=MARKERS[name],
            markersize=4,
            capsize=2,
        )
    axes.set_xticks(sorted({row["adapters"] for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("adapters")
    axes.set_ylabel("seconds per image (median, quartiles)")
    _save(figure, "Time of an image against the number of adapters", caption, path)


def cost_against_deviation(rows: Sequence[dict[str, Any]], caption: str, path: Path) -> None:
    """Speed against deviation of the most adapters; a contender without caching deviates by 0."""
    most = max(row["adapters"] for row in rows)
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    for row in rows:
        name = row["contender"]
        if row["adapters"] != most:
            continue
        theirs = name in BASELINES
        axes.plot(
            row.get("uncached", {"relative": 0.0})["relative"],
            1 / row["median"],
            label=CONTENDERS[name].what,
            color=COLOURS[name],
            linestyle="none",
            marker=MARKERS[name],
            fillstyle="none" if theirs else "full",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("largest difference to the image without caching / largest latent")
    axes.set_ylabel("images per second (median)")
    _save(figure, f"Speed against deviation, {most} adapters", caption, path)


def images_per_call(rows: Sequence[dict[str, Any]], caption: str, path: Path) -> None:
    """Throughput and memory over images per call, a line per setting."""
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10.0, 4.5), layout="constrained")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        images = [row["images"] for row in own]
        speed.plot(images, [row["images_per_second"] for row in own], "s-", label=setting)
        known = [row for row in own if row["peak_bytes"] is not None]
        memory.plot(
            [row["images"] for row in known], [row["peak_bytes"] / 2**30 for row in known], "s-"
        )
    for axes, label in ((speed, "images per second"), (memory, "GiB beyond the pipeline's own")):
        axes.set_xticks(sorted({row["images"] for row in rows}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images per call")
        axes.set_ylabel(label)
    _save(figure, "Throughput and peak memory", caption, path)


def _save(figure: Any, title: str, caption: str, path: Path) -> None:
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    caption = textwrap.fill(caption, CAPTION)
    figure.suptitle(title, fontsize=12)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.axes[0].set_title(caption, fontsize=7.5, color="0.35", loc="left")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
