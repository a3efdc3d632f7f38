"""A vision language model compares two images, in both orders."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from .endpoint import Endpoint
from .lora_info import LoraEntry
from .samples import Sample
from .statistics import compare
from .store import ImageStore, Ledger, Record
from .verdict import BEST, parse_scores

__all__ = ["RUBRICS", "Judge", "judge_all", "parse_scores"]

# Rubric -> axis -> what it asks. Two axes as in Zhong et al. 2024, four as in Zou et al. 2025.
RUBRICS: dict[str, dict[str, str]] = {
    "two": {
        "composition": "every element is there with all its features, and they form one scene; "
        "take off 3 points for a missing or wrong element, 1 for each missing or wrong feature",
        "quality": "no deformed bodies or objects, clean texture, light and colour; take off 3 "
        "points for each deformity, 2 for a visible fault, 1 for a minor one",
    },
    "four": {
        "integration": "the elements belong together in one picture",
        "consistency": "positions, sizes and perspective agree",
        "accuracy": "every element is the one described, with all its features",
        "aesthetics": "the picture pleases: style, light, colour, no deformities",
    },
}


class _Judged(Record):
    scores: Annotated[list[dict[str, float]], Field(min_length=2, max_length=2)]  # of two images
    tokens: Annotated[list[int], Field(min_length=2, max_length=2)]  # of question and answer


@dataclass(frozen=True)
class Judge:
    """Who is asked, by which rubric, and what a million tokens cost (question, answer)."""

    endpoint: Endpoint
    rubric: str = "two"
    prices: tuple[float, float] = (0.0, 0.0)

    @property
    def identity(self) -> str:
        return f"judge:{self.endpoint.model}:{self.rubric}"

    @property
    def axes(self) -> list[str]:
        return list(RUBRICS[self.rubric])

    def compare(self, combination: Sequence[LoraEntry], images: Sequence[Path]) -> dict[str, Any]:
        """Scores of two images in the order given: {"scores": [{axis: 0..10}, …], tokens}."""
        content = [{"type": "text", "text": question(combination, self.rubric)}]
        content += [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in images]
        spent, text = [0, 0], ""
        for _ in range(self.endpoint.attempts):
            text, *tokens = self.endpoint.ask(content)
            spent = [before + more for before, more in zip(spent, tokens, strict=True)]
            scores = parse_scores(text, self.axes)
            if scores is not None:
                return {"scores": scores, "tokens": spent}
        raise ValueError(
            f"judge {self.endpoint.url}: no scores in {self.endpoint.attempts} answers; "
            f"the last: {self.endpoint.redacted(text)[:200]!r}"
        )


def question(combination: Sequence[LoraEntry], rubric: str) -> str:
    """What the judge is asked about two images."""
    elements = [
        f"{number}. {entry.category} ({entry.name}): {', '.join(entry.trigger)}"
        for number, entry in enumerate(combination, 1)
    ]
    axes = [f"- {axis}: {meaning}" for axis, meaning in RUBRICS[rubric].items()]
    shape = {axis: "score" for axis in RUBRICS[rubric]}
    return "\n".join(
        [
            "Two images should each compose these elements into one picture:",
            *elements,
            f"Rate both from 0 to {BEST} in steps of 0.5 on:",
            *axes,
            "Be critical, and look at each image by itself before you compare. Explain briefly, "
            "then end with one line of JSON and nothing after it:",
            json.dumps({"image 1": shape, "image 2": shape}),
        ]
    )


def judge_all(
    judge: Judge,
    samples: Sequence[Sample],
    store: ImageStore,
    advance: Callable[[], None] = lambda: None,
    tie: float = 0.0,
) -> dict[str, Any]:
    """The first candidate against every other, each pair in both orders; kept in judge.jsonl.

    Returns:
        ``methods``: label -> axis -> mean; ``comparisons`` of the scores averaged over the orders;
        ``flips``: share of pairs whose winner changes with the order; tokens and cost.
    """
    ledger = Ledger(store.folder / "judge.jsonl", _Judged)
    base = samples[0].candidate
    by_pair = {s.pair: s for s in samples if s.candidate == base}
    judged, tokens = [], [0, 0]
    for other in (s for s in samples if s.candidate != base):
        pair = by_pair[other.pair], other
        orders = [_verdict(judge, ledger, store, pair), _verdict(judge, ledger, store, pair[::-1])]
        advance()
        for order in orders:
            tokens = [a + b for a, b in zip(tokens, order["tokens"], strict=True)]
        # Both as (base, other).
        judged.append((other, (orders[0]["scores"], orders[1]["scores"][::-1])))
    flips = [_winner(one) * _winner(two) < 0 for _, (one, two) in judged]
    return {
        "identity": judge.identity,
        **_summed(judge.axes, base, judged, tie),
        "flips": fmean(flips) if flips else None,
        "tokens": {"question": tokens[0], "answer": tokens[1]},
        "cost": sum(n * price / 1e6 for n, price in zip(tokens, judge.prices, strict=True)),
    }


def _summed(
    axes: Sequence[str], base: str, judged: Sequence[tuple[Sample, Any]], tie: float
) -> dict[str, Any]:
    """``methods`` and ``comparisons`` of scores averaged over the orders."""
    totals: dict[str, dict[str, list[float]]] = {}
    columns: dict[tuple[str, str], tuple[dict, dict]] = {}
    for other, seen in judged:
        for axis in axes:
            means = [fmean(order[image][axis] for order in seen) for image in (0, 1)]
            for label, mean in zip((base, other.candidate), means, strict=True):
                totals.setdefault(label, {}).setdefault(axis, []).append(mean)
            first, second = columns.setdefault((other.candidate, axis), ({}, {}))
            first[other.pair], second[other.pair] = means
    groups = {other.pair: other.pair for other, _ in judged}
    return {
        "methods": {
            label: {axis: fmean(values) for axis, values in found.items()}
            for label, found in totals.items()
        },
        "comparisons": [
            {"score": axis, "a": base, "b": label, **compare(first, second, groups, tie)}
            for (label, axis), (first, second) in columns.items()
        ],
    }


def _verdict(judge: Judge, ledger: Ledger, store: ImageStore, pair: Sequence[Sample]) -> dict:
    causes = [judge.identity, *(sample.job.key for sample in pair)]
    key = hashlib.sha256(json.dumps(causes).encode()).hexdigest()[:20]
    if key not in ledger:
        images = [store.path(sample.job) for sample in pair]
        told = {"key": key, "judge": judge.identity, "images": causes[1:]}
        ledger.add({**told, **judge.compare(pair[0].combination, images)})
    return ledger[key]


def _winner(scores: Sequence[dict[str, float]]) -> float:
    return sum(scores[0].values()) - sum(scores[1].values())


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
