"""What one UNet call does, and how the summary tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..schedule import Choice, Plan
from ..unet.rows import DeepTable, StepRows

__all__ = ["BASE", "Decision", "image_record", "label", "summed"]

BASE = "__base__"  # PEFT's name for a row without adapters


@dataclass(frozen=True)
class Decision:
    """The rows of one UNet call, and the weights of their predictions.

    ``weights`` (groups, batch), or with masks (groups, batch, H, W).
    """

    rows: StepRows
    weights: Tensor | None  # None: one row per sample, taken as it is
    images: int
    chosen: tuple[tuple[Choice, bool | None], ...] | None  # per image; None: the device chose


def image_record(
    plan: Plan,
    decision: Decision,
    image: int,
    chosen: tuple[Choice, bool | None],
    shares: Sequence[float],
) -> dict[str, Any]:
    """The deciding fields of a ``StepRecord`` for one image."""
    rows, (choice, early) = decision.rows, chosen
    if isinstance(rows.deep, DeepTable):
        refreshed = {j for j, fresh in enumerate(choice.refresh) if fresh}
    else:
        refreshed = {
            row // rows.batch for row in rows.deep if row % rows.batch % decision.images == image
        }
    subsets = [plan.subsets[group] for group in rows.groups]
    return {
        "dominant": choice.dominant,
        "early": early,
        "refreshed": tuple(dict.fromkeys(n for p in sorted(refreshed) for n in subsets[p])),
        "weights": _named_weights(subsets, shares),
    }


def _named_weights(subsets: list[tuple[str, ...]], shares: Sequence[float]) -> dict[str, float]:
    """Adapter -> share; the adapters of a merged row share its weight evenly."""
    weights = {}
    for subset, share in zip(subsets, shares, strict=True):
        for member in subset or (BASE,):
            weights[member] = share / max(1, len(subset))
    return weights


def label(subset: tuple[str, ...]) -> str:
    return "+".join(subset) if subset else BASE


def summed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Name -> sum of its values: an adapter may have several rows."""
    totals = dict.fromkeys(names, 0.0)
    for name, value in zip(names, values, strict=True):
        totals[name] += value
    return totals
