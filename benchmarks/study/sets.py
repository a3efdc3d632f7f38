"""What the study compares: methods and settings, combinations, seeds.

Choices are made on one half of the combinations and seeds and reported on the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cmlora_fast as cf
from cmlora_fast.eval.samples import clora_for

__all__ = ["BASELINE", "CHOICES", "MEAN", "METHODS", "PARTS", "SUM", "Entry", "Half", "Part"]

# Times every adapter's weight. Each method has its own best: the choice half's, see PARTS.
SUM, MEAN = 0.7, 1.4  # of methods that add adapters up, and of those that average or take turns
BASELINE = "CMLoRA corrected"


@dataclass(frozen=True)
class Entry:
    """A line of a table: a method and the strength of all adapters; or the base model alone."""

    label: str
    method: Any = None
    strength: float = MEAN
    loras: bool = True


@dataclass(frozen=True)
class Half:
    """Combinations of each style by number of adapters, as slices of a shuffled order; seeds."""

    name: str
    combinations: dict[int, str]
    seeds: range


@dataclass(frozen=True)
class Part:
    """Entries on a half of the material, with so many adapters at once."""

    name: str
    half: Half
    counts: tuple[int, ...]
    entries: tuple[Entry, ...]


CHOICE = Half("choice", dict.fromkeys((2, 3, 4, 5), "0:5"), range(4))
REPORT = Half(
    "report",
    {2: "8:13", 3: "8:20", 4: "8:13", 5: "8:13"},  # more where the claims are decided
    range(20_000, 20_003),
)
CLORA = partial(clora_for, cf.CLoRA(concepts=[cf.Concept("any", "any")]))  # per combination

METHODS = (
    Entry("no LoRA", strength=1.0, loras=False),
    Entry("merge", cf.Merge(), SUM),
    Entry("Switch", cf.Switch()),
    Entry("Switch, every step", cf.Switch(switch_step=1)),
    Entry("Switch-A", cf.Switch(partition=True)),
    Entry("Composite", cf.Composite()),
    Entry("CLoRA", CLORA),
    Entry("CMLoRA released", cf.CMLoRA(reference_compat=True, cache_interval=3)),
    Entry(BASELINE, cf.CMLoRA()),
)
SWEPT = {
    "merge": (0.5, 0.7, 1.0, 1.4),
    "Switch, every step": (0.7, 1.0, 1.4, 2.0),
    "Composite": (0.7, 1.0, 1.4, 2.0),
    "CLoRA": (1.0, 1.4, 2.0),
    BASELINE: (0.7, 1.0, 1.4, 2.0),
}

# Each changes the corrected default in one place.
CHOICES = (
    Entry("default", cf.CMLoRA()),
    Entry("decay frozen", cf.CMLoRA(decay="frozen")),
    Entry("coeff_floor 2", cf.CMLoRA(coeff_floor=2.0)),
    Entry("dominant_coeff 1: equal weights", cf.CMLoRA(dominant_coeff=1.0)),
    Entry("dominant_coeff 6", cf.CMLoRA(dominant_coeff=6.0)),
    Entry("late low_only", cf.CMLoRA(late="low_only")),
    Entry("stage_fraction 0.3", cf.CMLoRA(stage_fraction=0.3)),
    Entry("stage_fraction 1", cf.CMLoRA(stage_fraction=1.0)),
    Entry("max_age 4", cf.CMLoRA(max_age=4)),
    Entry("dominant_full every_step", cf.CMLoRA(dominant_full="every_step")),
    Entry("cache_interval 1: no cache", cf.CMLoRA(cache_interval=1)),
    Entry("cache_interval 2", cf.CMLoRA(cache_interval=2)),
    Entry("cache_interval 3", cf.CMLoRA(cache_interval=3)),
    Entry("cache_interval 5", cf.CMLoRA(cache_interval=5)),
    Entry("cache branch (0, 0)", cf.CMLoRA(cache_block_id=0)),
    Entry("cache branch (1, 0)", cf.CMLoRA(cache_layer_id=1, cache_block_id=0)),
    Entry("variant async", cf.CMLoRA(variant="async")),
    Entry("variant online", cf.CMLoRA(variant="online")),
    Entry("online, cutoff 0.4", cf.CMLoRA(variant="online", cutoff=0.4)),
)
# Settings that looked better there, once more on the other half.
CHECKED = tuple(
    entry
    for entry in CHOICES
    if entry.label in ("late low_only", "dominant_full every_step", "cache branch (0, 0)")
)


def _swept() -> tuple[Entry, ...]:
    chosen = [entry for entry in METHODS if entry.label in SWEPT]
    return tuple(replace(entry, strength=s) for entry in chosen for s in SWEPT[entry.label])


PARTS = (
    Part("strength", CHOICE, (3,), _swept()),
    Part("choices", CHOICE, (3,), CHOICES),
    Part("methods", REPORT, (2, 3, 4, 5), METHODS),
    Part("checked", REPORT, (3,), CHECKED),
)
