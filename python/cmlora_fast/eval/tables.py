"""Results as CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .samples import Sample
from .store import ImageStore

__all__ = ["comparison_table", "judge_note", "markdown", "method_table", "rows", "write_csv"]

PLACES = 3


def rows(
    samples: Sequence[Sample], scores: Sequence[dict[str, Any]], store: ImageStore
) -> list[dict[str, Any]]:
    """One flat row per image."""
    told = []
    for sample, found in zip(samples, scores, strict=True):
        record = store.record(sample.job)
        concepts = found.get("concepts", {})
        told.append(
            {
                "method": sample.candidate,
                "combination": "+".join(sample.group),
                "seed": sample.job.seed,
                "image": record["image"],
                "seconds": record["seconds"],
                "full_rows": record["full_rows"],
                "shallow_rows": record["shallow_rows"],
                **{name: value for name, value in found.items() if name != "concepts"},
                **{f"shows {name}": value for name, value in concepts.items()},
            }
        )
    return told


def write_csv(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)


def method_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of methods: mean [interval]."""
    names = list(dict.fromkeys(n for m in results["methods"].values() for n in m["intervals"]))
    columns = ["method", *names, "cost", "seconds per image", "images"]
    cells = []
    for label, method in results["methods"].items():
        means = [_mean(method.get(name), method["intervals"].get(name)) for name in names]
        seconds = f"{method['seconds_per_image']:.2f}"
        cost = method.get("cost")
        told = "–" if cost is None else f"{cost:.2f}"
        cells.append([label, *means, told, seconds, str(method["images"])])
    return columns, cells


def comparison_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of pairs."""
    columns = ["score", "a", "b", "win", "tie", "loss", "a − b"]
    cells = []
    for c in results["comparisons"]:
        counts = map(str, (c["win"], c["tie"], c["loss"]))
        cells.append(
            [c["score"], c["a"], c["b"], *counts, _mean(c["difference"], c["interval"], "+")]
        )
    return columns, cells


def recall_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of concepts: a column per method."""
    methods = results["methods"]
    concepts = sorted({name for m in methods.values() for name in m["concept_recall"]})
    return ["concept", *methods], [
        [name, *(_mean(m["concept_recall"].get(name), None) for m in methods.values())]
        for name in concepts
    ]


def judge_note(judge: dict[str, Any]) -> str:
    """One line: who judged, how often the order of the images decided, and the price."""
    tokens = judge["tokens"]
    return (
        f"{judge['identity']}, winner changed with the order in {judge['flips']:.0%} of the pairs, "
        f"{tokens['question']} + {tokens['answer']} tokens, cost {judge['cost']:.4f}"
    )


def markdown(title: str, facts: dict[str, Any], results: dict[str, Any]) -> str:
    """A report that stands alone: what was run, the tables, how to read them."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "## Methods", "", *_pipes(*method_table(results))]
    if any(m["concept_recall"] for m in results["methods"].values()):
        lines += ["", "## Concepts: share of the images that show them", ""]
        lines += _pipes(*recall_table(results))
    if results["comparisons"]:
        lines += ["", "## Pairs, on equal combinations and seeds", ""]
        lines += _pipes(*comparison_table(results))
    if "judge" in results:
        lines += ["", f"## Judge: {judge_note(results['judge'])}", ""]
        lines += _pipes(*comparison_table(results["judge"]))
    lines += [
        "",
        "In brackets: 95 % bootstrap intervals. An interval that holds 0 decides nothing.",
        "Cost: UNet calls counted, in images of one LoRA; where steps are fewer, of all steps.",
        "Seconds: median over the images, model loading aside.",
    ]
    return "\n".join(lines) + "\n"


def _mean(value: float | None, bounds: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    text = f"{value:{sign}.{PLACES}f}"
    return text if bounds is None else f"{text} [{bounds[0]:.{PLACES}f}, {bounds[1]:.{PLACES}f}]"


def _pipes(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *cells)]
