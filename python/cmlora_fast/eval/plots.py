"""The pictures of ``cmlora analyze``, made without pyplot: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .difference import Difference
from .frequency import BASE, FrequencyProfile

__all__ = [
    "difference_figure",
    "frequency_figure",
    "macs_figure",
    "profiles_figure",
    "similarity_figure",
    "timeline_figure",
]

CURVES = 8  # radial profiles per panel
PALETTE = colormaps["tab10"]
HIGH, LOW, GREY = "#c2410c", "#1d4ed8", "#9ca3af"
DASHES = ("-", "-", "-", (0, (4, 4)))  # equal curves stay visible


def profiles_figure(profile: FrequencyProfile) -> Figure:
    """A panel per adapter: radial profiles of the latents, early steps dark, late ones bright."""
    names = list(profile.profiles)
    figure, axes = _panels(len(names), "Radial profiles of the latents over the steps")
    colours = colormaps["viridis"]
    for axis, name in zip(axes, names, strict=True):
        steps = np.asarray(profile.profiles[name])
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(CURVES, len(steps))).astype(int))
        for step in chosen:
            colour = colours(step / max(1, len(steps) - 1))
            axis.plot(steps[step], color=colour, label=f"step {step}" if axis is axes[0] else None)
        axis.axvspan(
            max(1, int(0.2 * (len(steps[0]) - 1))), len(steps[0]) - 1, color=GREY, alpha=0.15
        )
        axis.set(title=_name(name), xlabel="radius (bins)", yscale="log")
    figure.supylabel("amplitude / maximum", fontsize="medium")
    band = Patch(color=GREY, alpha=0.15, label="band")
    figure.legend(handles=[*axes[0].get_lines(), band], loc="outside right upper")
    return figure


def frequency_figure(profile: FrequencyProfile) -> Figure:
    """Left: high-frequency mean over the steps. Right: what each adapter adds; the partition."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle("High frequencies of the latents")
    for index, name in enumerate(profile.amplitude):
        style = {"color": "black", "linestyle": "--"} if name == BASE else {"color": PALETTE(index)}
        left.plot(profile.amplitude[name], label=_name(name), **style)
    left.set(title="mean above 0.2 of the largest radius", xlabel="step", ylabel="mean amplitude")
    left.legend(fontsize="small")
    _whole_steps(left)
    names = profile.order[::-1]
    colours = [LOW if name in profile.low_frequency else HIGH for name in names]
    right.barh(names, [profile.added[name] for name in names], color=colours)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(title="added to the base model", xlabel="mean over steps, adapter − base")
    keys = [Patch(color=HIGH, label="high frequency"), Patch(color=LOW, label="low frequency")]
    right.legend(handles=keys, fontsize="small")
    return figure


def similarity_figure(cosines: Mapping[str, np.ndarray]) -> Figure:
    """Step against step, a panel per adapter."""
    figure, axes = _panels(len(cosines), "Cosine of cached features, step by step")
    least = min(float(c.min()) for c in cosines.values())
    for axis, (name, matrix) in zip(axes, cosines.items(), strict=True):
        picture = axis.imshow(matrix, origin="lower", vmin=least, vmax=1, cmap="magma")
        axis.set(title=_name(name), xlabel="step", ylabel="step")
        _whole_steps(axis)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, ax=axes, label="cosine")
    return figure


def timeline_figure(lanes: Mapping[str, Any], title: str) -> Figure:
    """Above: a lane per adapter, full or the age of what it reuses. Below: its weight."""
    adapters = lanes["adapters"]
    figure = Figure(figsize=(11, 2.6 + 0.45 * len(adapters)), layout="constrained")
    ratios = (max(1.0, 0.45 * len(adapters)), 1.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    figure.suptitle(title)
    ages = np.array([[age or 0 for age in lane["age"]] for lane in adapters.values()], float)
    full = np.array([lane["full"] for lane in adapters.values()])
    steps = full.shape[1]
    shown = np.ma.array(ages, mask=full)
    picture = upper.imshow(
        shown, aspect="auto", cmap="YlGnBu", vmin=0, vmax=max(1.0, ages.max()), interpolation="none"
    )
    upper.imshow(
        np.ma.array(np.ones_like(ages), mask=~full), aspect="auto", cmap="Reds", vmin=0, vmax=1.4
    )
    for step, name in enumerate(lanes["dominant"]):
        if name in adapters:
            upper.plot(step, list(adapters).index(name), "k.", markersize=4)
    upper.set_yticks(range(len(adapters)), list(adapters))
    upper.set_xticks(np.arange(-0.5, steps), minor=True)
    upper.grid(which="minor", axis="x", color="white", linewidth=0.5)
    upper.tick_params(which="minor", length=0)
    late = next((i for i, early in enumerate(lanes["early"]) if early is False), None)
    for axis in (upper, lower):
        if late is not None:
            axis.axvline(late - 0.5, color="black", linestyle=":", linewidth=1)
    red = Patch(color=colormaps["Reds"](1 / 1.4), label="full")
    dot = upper.plot([], [], "k.", label="dominant")[0]
    figure.legend(handles=[red, dot], loc="outside upper right", ncols=2, fontsize="small")
    figure.colorbar(picture, ax=upper, label="age (steps)", pad=0.01)
    for index, (name, lane) in enumerate(adapters.items()):
        lower.step(range(steps), lane["weight"], where="mid", label=name, color=PALETTE(index))
    lower.set(xlabel="step (dotted: late stage begins)", ylabel="weight", ylim=(0, None))
    lower.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
    _whole_steps(lower)
    return figure


def difference_figure(
    images: Sequence[Any], found: Difference, label: str, amplify: float = 4.0
) -> Figure:
    """Uncached, cached, their differences (amplified), and radial profiles in pixel space."""
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    axes = figure.subplots(1, 5)
    psnr = found.numbers["psnr"]
    figure.suptitle(
        f"{label} against no caching: " + ("equal" if psnr is None else f"{psnr:.1f} dB")
    )
    for axis, picture, title in zip(axes, images, ("uncached", "cached"), strict=False):
        axis.imshow(picture)
        axis.set_title(title)
    for axis, picture, title in (
        (axes[2], found.absolute, "difference"),
        (axes[3], found.high_pass, "high-pass difference"),
    ):
        shown = axis.imshow(picture, cmap="inferno", vmin=0, vmax=255 / amplify)
        axis.set_title(title)
        figure.colorbar(shown, ax=axis, label="levels of 255", shrink=0.75)
    for axis in axes[:4]:
        axis.set_axis_off()
    axes[4].plot(found.profiles[1], label="uncached", color="black")
    axes[4].plot(found.profiles[0], label="cached", color=HIGH, linestyle="--")
    axes[4].set(title="radial profile", xlabel="radius (bins)", ylabel="log amplitude / maximum")
    axes[4].legend(fontsize="small")
    return figure


def macs_figure(per_step: Mapping[str, Sequence[int]], title: str) -> Figure:
    """Left: GMACs of every UNet call. Right: their sum per image."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(title)
    colours = [PALETTE(index) for index in range(len(per_step))]
    for index, (label, counts) in enumerate(per_step.items()):
        style = {"color": colours[index], "linestyle": DASHES[index % len(DASHES)]}
        steps = range(len(counts))
        left.step(steps, [n / 1e9 for n in counts], where="mid", label=label, **style)
    left.set(title="per UNet call", xlabel="step", ylabel="GMACs", ylim=(0, None))
    _whole_steps(left)
    figure.legend(handles=left.get_lines(), loc="outside lower left", ncols=len(per_step))
    totals = [sum(counts) / 1e9 for counts in per_step.values()]
    bars = right.barh(list(per_step), totals, color=colours)
    shares = [f" {total:.4g} ({total / totals[-1]:.0%})" for total in totals]
    right.bar_label(bars, shares)
    right.set(title="per image", xlabel=f"GMACs (100 %: {list(per_step)[-1]})")
    right.margins(x=0.42)
    right.invert_yaxis()
    return figure


def _whole_steps(axis: Any) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name(name: str) -> str:
    return "no LoRA" if name == BASE else name


def _panels(count: int, title: str) -> tuple[Figure, list[Any]]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.3 * columns + 1.4, 3.2 * rows + 0.8), layout="constrained")
    figure.suptitle(title)
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharey=True)).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]
