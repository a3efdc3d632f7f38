"""Means with bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

__all__ = ["compare", "grouped", "interval"]

CONFIDENCE = 0.95
RESAMPLES = 9999


def interval(values: Sequence[float]) -> list[float] | None:
    """Percentile bootstrap interval of the mean, the same at every call; None for one value."""
    if len(values) < 2:
        return None
    result = bootstrap(
        (np.asarray(values, float),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",  # the corrected ones have no answer where all values are equal
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def grouped(values: Mapping[Hashable, float], groups: Mapping[Hashable, Hashable]) -> list[float]:
    """Mean of each group of samples: what is resampled where samples of a group are alike."""
    members: dict[Hashable, list[float]] = {}
    for sample, value in values.items():
        members.setdefault(groups[sample], []).append(value)
    return [float(np.mean(group)) for group in members.values()]


def compare(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    groups: Mapping[Hashable, Hashable],
    tie: float = 0.0,
) -> dict[str, Any]:
    """``a`` against ``b`` on the samples that both have.

    Args:
        a: Sample -> score.
        b: The same of the other.
        groups: Sample -> what is resampled as one.
        tie: Scores that differ by no more than this are tied.

    Returns:
        win, tie and loss of ``a``, the mean difference a - b and its bootstrap interval.
    """
    both = [sample for sample in a if sample in b]
    # Rounded, or 0.8 - 0.7 would not be a tie at 0.1.
    gaps = {sample: round(a[sample] - b[sample], 9) for sample in both}
    return {
        "win": sum(gap > tie for gap in gaps.values()),
        "tie": sum(abs(gap) <= tie for gap in gaps.values()),
        "loss": sum(gap < -tie for gap in gaps.values()),
        "difference": float(np.mean(list(gaps.values()))) if gaps else None,
        "interval": interval(grouped(gaps, groups)),
    }
