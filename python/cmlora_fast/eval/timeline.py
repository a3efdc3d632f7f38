"""What ran when: one lane per adapter."""

from __future__ import annotations

from typing import Any

import cmlora_fast as cf

__all__ = ["lanes"]


def lanes(summary: cf.Summary) -> dict[str, Any]:
    """``adapters``: name -> lists over the steps: ``full`` (its deep part ran), ``age`` (steps
    since then; 0 where it ran), ``weight`` (share of the prediction). And ``dominant``, ``early``.
    """
    told: dict[str, dict[str, list]] = {
        name: {"full": [], "age": [], "weight": []} for name in summary.adapters
    }
    ages: dict[str, int | None] = dict.fromkeys(summary.adapters)
    for step in summary.steps:
        for name, lane in told.items():
            full = name in step.refreshed
            age = ages[name]
            ages[name] = 0 if full else None if age is None else age + 1
            lane["full"].append(full)
            lane["age"].append(ages[name])
            lane["weight"].append(step.weights.get(name, 0.0))
    return {
        "adapters": told,
        "dominant": [step.dominant for step in summary.steps],
        "early": [step.early for step in summary.steps],
        "milliseconds": [step.milliseconds for step in summary.steps],
    }
