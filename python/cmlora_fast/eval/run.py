"""Paint, score and sum up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .paint import Painted, paint_all
from .samples import Sample, jobs_of
from .scorers import Scene, Scorer
from .scorers.base import PRESENT
from .statistics import compare, grouped, interval
from .store import ImageStore, Ledger, Record
from .tables import rows, write_csv

__all__ = ["evaluate", "score_all", "summarise"]


class _Scored(Record):
    scores: dict[str, float | dict[str, float]]


def evaluate(
    pipe: Any,
    samples: Sequence[Sample],
    scorers: Sequence[Scorer],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    by_combination: bool = False,
    tie: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """Paint what is missing in ``folder``, score it, and say which candidate does best.

    Args:
        pipe: With every adapter loaded.
        samples: From ``make_samples``.
        scorers: Already checked.
        folder: Gets images, manifest.jsonl, scores.jsonl and results.csv; a second run goes on
            from there.
        advance: Called once per image.
        by_combination: Resample combinations, not single images, for the intervals: right when
            few combinations have many seeds each.
        tie: Scores no further apart are tied.
        options: ``backend``, ``weights``, ``max_rows`` of ``cf.enable``.
    """
    store = ImageStore(folder, Painted)
    _ledger(store)  # refused, if it is, before the first image
    paint_all(pipe, jobs_of(samples), store, lambda job: advance(), **options)
    scores = score_all(samples, scorers, store)
    write_csv(rows(samples, scores, store), folder / "results.csv")
    return summarise(samples, scores, store, by_combination=by_combination, tie=tie)


def score_all(
    samples: Sequence[Sample], scorers: Sequence[Scorer], store: ImageStore
) -> list[dict[str, Any]]:
    """The numbers of every sample, each computed once per image and scorer."""
    ledger = _ledger(store)
    return [
        {
            name: value
            for scorer in scorers
            for name, value in _score(sample, scorer, store, ledger).items()
        }
        for sample in samples
    ]


def _ledger(store: ImageStore) -> Ledger:
    return Ledger(store.folder / "scores.jsonl", _Scored)


def _score(sample: Sample, scorer: Scorer, store: ImageStore, ledger: Ledger) -> dict[str, Any]:
    own = sample.own if "own" in scorer.wants else {}
    reference = sample.reference if "reference" in scorer.wants else None
    causes = [
        scorer.identity,
        sample.job.key,
        [entry.model_dump() for entry in sample.combination],
        reference.key if reference else None,
        {name: [job.key for job in jobs] for name, jobs in own.items()},
    ]
    key = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:20]
    if key not in ledger:
        scene = Scene(
            store.path(sample.job),
            sample.combination,
            sample.job.prompt,
            store.path(reference) if reference else None,
            {name: [store.path(job) for job in jobs] for name, jobs in own.items()},
        )
        told = {"key": key, "image": sample.job.key, "scorer": scorer.identity}
        ledger.add({**told, "scores": scorer.score(scene)})
    return ledger[key]["scores"]


def summarise(
    samples: Sequence[Sample],
    scores: Sequence[dict[str, Any]],
    store: ImageStore,
    *,
    by_combination: bool = False,
    tie: float = 0.0,
) -> dict[str, Any]:
    """``methods``: label -> its means and intervals; ``comparisons``: every pair on every score."""
    table: dict[str, dict[str, dict]] = {}  # label -> score -> pair -> value
    groups = {s.pair: s.group if by_combination else s.pair for s in samples}
    for sample, found in zip(samples, scores, strict=True):
        columns = table.setdefault(sample.candidate, {})
        for name, value in found.items():
            if name != "concepts":
                columns.setdefault(name, {})[sample.pair] = value
    methods = {}
    for label, columns in table.items():
        mine = [(s, f) for s, f in zip(samples, scores, strict=True) if s.candidate == label]
        records = [store.record(s.job) for s, _ in mine]
        methods[label] = {
            **{name: fmean(column.values()) for name, column in columns.items()},
            "concept_recall": _recall(mine),
            "seconds_per_image": median(record["seconds"] for record in records),
            "full_rows": fmean(record["full_rows"] for record in records),
            "shallow_rows": fmean(record["shallow_rows"] for record in records),
            "images": len(mine),
            "intervals": {
                name: interval(grouped(column, groups)) for name, column in columns.items()
            },
        }
    return {"methods": methods, "comparisons": _comparisons(table, groups, tie)}


def _recall(scored: Sequence[tuple[Sample, dict[str, Any]]]) -> dict[str, float]:
    """id -> share of the images that should show it and do."""
    shown: dict[str, list[bool]] = {}
    for _, found in scored:
        for name, probability in found.get("concepts", {}).items():
            shown.setdefault(name, []).append(probability > PRESENT)
    return {name: fmean(shown[name]) for name in sorted(shown)}


def _comparisons(table: dict[str, dict], groups: dict, tie: float) -> list[dict[str, Any]]:
    labels = list(table)
    return [
        {"score": name, "a": a, "b": b, **compare(table[a][name], table[b][name], groups, tie)}
        for index, a in enumerate(labels)
        for b in labels[index + 1 :]
        for name in table[a]
        if name in table[b]
    ]
