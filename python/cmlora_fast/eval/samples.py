"""What is compared: every candidate on the same combinations and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import cmlora_fast as cf

from ..schedule import plan
from .jobs import Adapter, Generation, Job, digest
from .lora_info import LoraEntry
from .testbeds import Testbed

__all__ = [
    "Candidate",
    "Sample",
    "clora_for",
    "fewer_steps",
    "jobs_of",
    "make_samples",
    "uncached",
    "without_cache",
]

STYLE = "style"  # the category that changes all of the image


@dataclass(frozen=True)
class Candidate:
    """A method under a label, or a function that makes it for a combination.

    ``loras=False`` is the base model, which sees the prompt alone. ``steps``: None, as all others.
    """

    label: str
    method: Any = None
    loras: bool = True
    steps: int | None = None


@dataclass(frozen=True)
class Sample:
    """One image of one candidate. ``pair`` is what it shares with the other candidates'."""

    candidate: str
    combination: tuple[LoraEntry, ...]
    job: Job
    reference: Job | None = None
    own: dict[str, tuple[Job, ...]] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self.combination)

    @property
    def pair(self) -> tuple[tuple[str, ...], int]:
        return self.group, self.job.seed


def make_samples(
    testbed: Testbed,
    combinations: Sequence[tuple[LoraEntry, ...]],
    seeds: Sequence[int],
    candidates: Sequence[Candidate],
    generation: Generation,
    wants: frozenset[str] = frozenset(),
) -> list[Sample]:
    """Combination by combination, candidate by candidate, seed by seed.

    Args:
        wants: What scorers want beside the image: "reference", "own".
    """
    own = {}
    if "own" in wants:
        for entry in {e.id: e for combination in combinations for e in combination}.values():
            one = (_adapter(testbed, entry),)
            text = testbed.prompt([entry])
            own[entry.id] = tuple(Job(generation, text, one, None, seed) for seed in seeds)
    samples = []
    for combination in combinations:
        prompt = testbed.prompt(combination)
        adapters = tuple(_adapter(testbed, entry) for entry in combination)
        for candidate in candidates:
            given = adapters if candidate.loras else ()
            method = candidate.method
            if callable(method):
                method = method(combination)
            how = replace(generation, steps=candidate.steps or generation.steps)
            for seed in seeds:
                job = Job(how, prompt, given, method, seed)
                samples.append(
                    Sample(
                        candidate.label,
                        combination,
                        job,
                        uncached(job) if "reference" in wants else None,
                        {e.id: own[e.id] for e in combination} if own else {},
                    )
                )
    return samples


def clora_for(method: cf.CLoRA, combination: Sequence[LoraEntry]) -> cf.CLoRA:
    """The method with a concept per LoRA, found by its first trigger word; styles on every row."""
    styles = [entry for entry in combination if entry.category == STYLE]
    concepts = [entry for entry in combination if entry not in styles] or styles
    return replace(
        method,
        concepts=tuple(cf.Concept(entry.id, entry.trigger[0]) for entry in concepts),
        style_adapters=tuple(entry.id for entry in styles if entry not in concepts),
    )


def uncached(job: Job) -> Job | None:
    """The same image with nothing kept from step to step; None where that is so."""
    method = without_cache(job.method) if job.adapters else job.method
    return None if method == job.method else replace(job, method=method)


def without_cache(method: Any) -> Any:
    """The method with every row whole at every step; one that keeps nothing as it is."""
    names = {f.name for f in fields(method)} if is_dataclass(method) else set()
    if "cache_interval" not in names:
        return method
    plain = {"cache": "features", "cache_interval": 1, "uniform": True, "center": None, "pow": None}
    return replace(method, **plain)


def fewer_steps(method: Any, adapters: Sequence[str], steps: int, shallow: float) -> int:
    """Steps without a cache that cost what ``steps`` with the method's cost, at least one.

    Args:
        shallow: Share of a whole UNet call that one from the cache costs.
    """
    plain = plan(without_cache(method), adapters, steps).work(1.0)
    return max(1, round(steps * plan(method, adapters, steps).work(shallow) / plain))


def jobs_of(samples: Sequence[Sample]) -> list[Job]:
    """Every image that the samples need, once, in order."""
    jobs: dict[str, Job] = {}
    for sample in samples:
        needed = [sample.job, sample.reference, *(j for own in sample.own.values() for j in own)]
        jobs |= {job.key: job for job in needed if job is not None and job.key not in jobs}
    return list(jobs.values())


def _adapter(testbed: Testbed, entry: LoraEntry) -> Adapter:
    return Adapter(entry.id, digest(testbed.paths[entry.id]))
