"""What the study's numbers say: means with intervals, paired differences, verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cmlora_fast.eval.statistics import compare, grouped, interval

__all__ = ["SCORES", "Study", "percent", "pipes", "signed"]

SCORES = ("composition", "recall")
Pair = tuple[str, int]


class Study:
    """Both result files; looks up a line by part, adapters, label and strength."""

    def __init__(self, shows: Path, seconds: Path):
        self.facts = json.loads(shows.read_text())
        self.timing = json.loads(seconds.read_text())
        self._cells = {
            (c["part"], c["adapters"], c["label"], c["strength"]): c for c in self.facts["cells"]
        }

    def lines(self, part: str, adapters: int) -> list[tuple[str, float]]:
        """(label, strength) in the order in which they were painted."""
        return [(k[2], k[3]) for k in self._cells if k[:2] == (part, adapters)]

    def cell(self, *place: Any) -> dict[str, Any]:
        """``place``: part, adapters, label and, where a label has several, strength."""
        return next(c for key, c in self._cells.items() if key[: len(place)] == place)

    def values(self, score: str, *place: Any) -> dict[Pair, float]:
        """(combination, number of the seed) -> 1 if all are there; share of those that are."""
        judge = {"composition": lambda m: float("0" not in m), "recall": _share}[score]
        shows = self.cell(*place)["shows"]
        return {(group, i): judge(m) for group, marks in shows.items() for i, m in enumerate(marks)}

    def mean(self, score: str, *place: Any) -> tuple[float, list[float]]:
        """Mean and its interval; combinations are what is resampled."""
        values = self.values(score, *place)
        return fmean(values.values()), interval(grouped(values, _groups(values)))

    def against(self, score: str, place: Sequence[Any], base: Sequence[Any]) -> dict[str, Any]:
        """``place`` minus ``base`` on equal combinations and seeds."""
        ours, theirs = self.values(score, *place), self.values(score, *base)
        return compare(ours, theirs, _groups(ours))

    def seconds(self, part: str, adapters: int, label: str) -> float:
        """Settings that were checked took what they took as choices."""
        place = "choices" if part == "checked" else part, adapters, label
        timings = self.timing["timings"]
        found = (t for t in timings if (t["part"], t["adapters"], t["label"]) == place)
        return min(next(found)["seconds"])

    def verdict(self, score: str, place: Sequence[Any], base: Sequence[Any]) -> str:
        """Whether the interval of the difference decides."""
        low, high = self.against(score, place, base)["interval"]
        return "more" if low > 0 else "less" if high < 0 else "undecided"


def _share(marks: str) -> float:
    return marks.count("1") / len(marks)


def _groups(values: Mapping[Pair, float]) -> dict[Pair, str]:
    return {pair: pair[0] for pair in values}


def percent(value: float, bounds: Sequence[float] | None = None) -> str:
    text = f"{100 * value:.0f}"
    return text if bounds is None else f"{text} [{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]"


def signed(told: Mapping[str, Any]) -> str:
    """A paired difference in percentage points."""
    low, high = (f"{100 * edge:+.0f}" for edge in told["interval"])
    return f"{100 * told['difference']:+.0f} [{low}, {high}]"


def pipes(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(r)} |" for r in (columns, ["---"] * len(columns), *rows))
