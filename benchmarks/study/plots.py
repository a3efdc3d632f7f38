"""Pictures of the study, as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL.Image import Image

from .sets import BASELINE
from .tables import SCORES, Study

__all__ = ["choices", "examples", "methods", "pareto", "strengths"]

NAMES = {"composition": "images that show all concepts (%)", "recall": "concepts shown (%)"}
MARKERS = "osD^vP*X<>"
DPI = 120
SECONDS = (0.5, 1, 2, 5)  # CLoRA's are several times the others'


def methods(study: Study, counts: Sequence[int], path: Path) -> None:
    """Both scores over the number of adapters, a line per method."""
    figure, axes = _panels("Methods against the number of LoRAs (bars: 95 % intervals)")
    for axis, score in zip(axes, SCORES, strict=True):
        for i, (label, strength) in enumerate(study.lines("methods", counts[0])):
            told = [study.mean(score, "methods", n, label, strength) for n in counts]
            places = [n + 0.03 * (i - 4) for n in counts]  # bars side by side
            _bars(axis, places, told, label, i)
        axis.set(xlabel="LoRAs per image", ylabel=NAMES[score], xticks=counts)
    _legend(figure, axes[0])
    figure.savefig(path, dpi=DPI)


def strengths(study: Study, path: Path) -> None:
    """Both scores over the strength of all adapters, a line per method."""
    figure, axes = _panels("Three LoRAs, all adapter weights times a strength")
    lines = study.lines("strength", 3)
    for axis, score in zip(axes, SCORES, strict=True):
        for i, label in enumerate(dict.fromkeys(label for label, _ in lines)):
            own = [s for name, s in lines if name == label]
            told = [study.mean(score, "strength", 3, label, s) for s in own]
            _bars(axis, own, told, label, i)
        axis.set(xlabel="strength", ylabel=NAMES[score])
    _legend(figure, axes[0])
    figure.savefig(path, dpi=DPI)


def pareto(study: Study, counts: Sequence[int], path: Path) -> None:
    """Seconds against concepts shown, a panel per number of adapters; the front is a line."""
    figure, axes = _panels("Time and quality: what no method beats in both lies on the line")
    for axis, n in zip(axes, counts, strict=True):
        points = []
        for i, (label, strength) in enumerate(study.lines("methods", n)):
            mean, bounds = study.mean("recall", "methods", n, label, strength)
            seconds = study.seconds("methods", n, label)
            _bars(axis, [seconds], [(mean, bounds)], label, i)
            points.append((seconds, 100 * mean))
        axis.plot(*zip(*_front(points), strict=True), color="grey", linewidth=1, zorder=0)
        axis.set(title=f"{n} LoRAs", xlabel="seconds per image", ylabel=NAMES["recall"])
        axis.set_xscale("log", subs=())
        axis.set_xticks(SECONDS, SECONDS)
    _legend(figure, axes[0])
    figure.savefig(path, dpi=DPI)


def choices(study: Study, path: Path) -> None:
    """Paired differences of each setting to the default."""
    labels = [label for label, _ in study.lines("choices", 3) if label != "default"]
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(labels)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"{BASELINE}, one setting changed: difference to the default, three LoRAs")
    for axis, score in zip(axes, SCORES, strict=True):
        for row, label in enumerate(labels[::-1]):
            told = study.against(score, ("choices", 3, label), ("choices", 3, "default"))
            low, high = (100 * edge for edge in told["interval"])
            clear = low > 0 or high < 0
            axis.plot([low, high], [row, row], color="C3" if clear else "grey")
            axis.plot(100 * told["difference"], row, "o", color="C3" if clear else "grey")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=f"{NAMES[score]}: points more", yticks=range(len(labels)))
        axis.set_yticklabels(labels[::-1])
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=DPI)


def examples(rows: Sequence[tuple[str, dict[str, tuple[Image, str]]]], path: Path) -> None:
    """A row per combination, a column per method; below each image which concepts it shows."""
    columns = list(rows[0][1])
    figure = Figure(figsize=(1.45 * len(columns), 1.85 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (line, (title, cells)) in enumerate(zip(axes, rows, strict=True)):
        for axis, (label, (image, shown)) in zip(line, cells.items(), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(shown, fontsize=7)
            if row == 0:
                axis.set_title(label.replace(", ", ",\n"), fontsize=8)
        line[0].set_ylabel(title, fontsize=7)
    figure.savefig(path, dpi=DPI)


def _panels(title: str):
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, 2)


def _bars(axis, places: Sequence[float], told: Iterable, label: str, index: int) -> None:
    means, bounds = zip(*told, strict=True)
    below = [100 * (m - b[0]) for m, b in zip(means, bounds, strict=True)]
    above = [100 * (b[1] - m) for m, b in zip(means, bounds, strict=True)]
    axis.errorbar(
        places,
        [100 * mean for mean in means],
        yerr=[below, above],
        label=label,
        color=f"C{index}",
        marker=MARKERS[index],
        markersize=6,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.3)


def _legend(figure: Figure, axis) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, by rising seconds."""
    best, front = float("-inf"), []
    for seconds, score in sorted(points):
        if score > best:
            best = score
            front.append((seconds, score))
    return front
