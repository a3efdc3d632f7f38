"""The study's page: docs/study.md and its pictures, written from the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmlora_fast import eval as lab
from cmlora_fast import testbed
from PIL import Image

from . import plots as plots
from .__main__ import RESULTS, SECONDS, SHOWS, WORK, samples_of
from .sets import BASELINE, PARTS
from .tables import SCORES, Study, percent, pipes, signed
from .words import findings

TEMPLATE = Path(__file__).resolve().parent / "template.md"
DOCS = Path(__file__).resolve().parents[2] / "docs"
COUNTS = (2, 3, 4, 5)
PARETO = (3, 5)
SHOWN = 3  # combinations among the examples


def method_table(study: Study, n: int) -> str:
    """One number of adapters: scores, differences to CMLoRA, time and work of every method."""
    return _table(study, "methods", n, ("methods", n, BASELINE))


def choice_table(study: Study) -> str:
    """Three adapters: the same of every setting."""
    return _table(study, "choices", 3, ("choices", 3, "default"))


def checked_table(study: Study) -> str:
    """Three adapters: the settings of the choice half that were painted on the other, too."""
    return _table(study, "checked", 3, ("methods", 3, BASELINE))


def _table(study: Study, part: str, n: int, base: tuple[str, int, str]) -> str:
    columns = ["", *SCORES, "Δ composition", "Δ recall", "seconds", "GMAC"]
    rows = []
    for label, _ in study.lines(part, n):
        place = part, n, label
        scores = [percent(*study.mean(score, *place)) for score in SCORES]
        gaps = [signed(study.against(score, place, base)) for score in SCORES]
        gmacs = study.cell(*place)["gmacs"]
        cost = [f"{study.seconds(*place):.2f}", "–" if gmacs is None else f"{gmacs:.1f}"]
        rows.append([label, *scores, *(gaps if place != base else ("", "")), *cost])
    return pipes(columns, rows)


def strength_table(study: Study) -> str:
    rows = []
    for label, strength in study.lines("strength", 3):
        place = "strength", 3, label, strength
        rows.append([label, f"{strength:g}", *(percent(*study.mean(s, *place)) for s in SCORES)])
    return pipes(["", "strength", *SCORES], rows)


def example_rows() -> list[tuple[str, dict[str, Any]]]:
    """The first reported combinations of three, the first seed, by every method.

    Without those of which an image is missing: ``study --add`` paints no known line again.
    """
    part = next(part for part in PARTS if part.name == "methods")
    store, scorer = lab.ImageStore(WORK), testbed.Scorer()
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    style = testbed.STYLES[0]
    for sample in samples_of(part, style):
        wanted = len(sample.combination) == 3 and sample.job.seed == part.half.seeds[0]
        if wanted and store.has(sample.job):
            image = Image.open(store.path(sample.job)).convert("RGB")
            seen = scorer.score([image], style)[0]
            names = [e.name for e in sample.combination if seen[e.id] > 0.5]
            label = sample.candidate.rpartition(" × ")[0]
            cells = found.setdefault(tuple(e.name for e in sample.combination), {})
            cells[label] = image, "\n".join(names) or "none"
    whole = [(n, cells) for n, cells in found.items() if len(cells) == len(part.entries)]
    return [("\n".join(names), cells) for names, cells in whole[:SHOWN]]


def page(study: Study) -> str:
    """The text of docs/study.md."""
    tables = "\n\n".join(f"### {n} LoRAs\n\n{method_table(study, n)}" for n in COUNTS)
    return TEMPLATE.read_text().format(
        methods=tables,
        choices=choice_table(study),
        checked=checked_table(study),
        strengths=strength_table(study),
        **findings(study, COUNTS),
    )


def main() -> None:
    study = Study(RESULTS / SHOWS, RESULTS / SECONDS)
    (DOCS / "study.md").write_text(page(study))
    plots.methods(study, COUNTS, DOCS / "study-methods.png")
    plots.pareto(study, PARETO, DOCS / "study-pareto.png")
    plots.strengths(study, DOCS / "study-strength.png")
    plots.choices(study, DOCS / "study-choices.png")
    if WORK.exists() and (rows := example_rows()):  # images are not kept with the results
        plots.examples(rows, DOCS / "study-examples.png")
    print(DOCS / "study.md")


if __name__ == "__main__":
    main()
