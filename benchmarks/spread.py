"""Medians, quartiles and ratios of medians with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

__all__ = ["quartiles", "ratio"]

CONFIDENCE = 0.95
RESAMPLES = 4999


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "low": low, "high": high}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float | None]:
    """median(numerator) / median(denominator), with a percentile interval for two values or more.

    The interval of few values is no wider than they are: their number stands beside it.
    """
    value = float(np.median(numerator) / np.median(denominator))
    if min(len(numerator), len(denominator)) < 2:
        return {"ratio": value, "low": None, "high": None}
    found = bootstrap(
        (np.asarray(numerator), np.asarray(denominator)),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"ratio": value, "low": float(found.low), "high": float(found.high)}
