"""The passages of docs/study.md that state numbers; the rest stands in study_template.md."""

from __future__ import annotations

from collections.abc import Sequence

from .study_sets import BASELINE, MEAN, SUM
from .study_tables import SCORES, Study, percent, signed

__all__ = ["findings"]


def findings(study: Study, counts: Sequence[int]) -> dict[str, str]:
    """Name -> passage, for the template."""
    painting = study.facts["arguments"]["generation"]
    machine = study.timing["machine"]
    return {
        "report": _half(study, "methods"),
        "choice": _half(study, "choices"),
        "painting": f"{painting['steps']} steps of DPM-Solver++, guidance "
        f"{painting['guidance_scale']:g}, 64 x 64 pixels.",
        "machine": f"{study.timing['arguments']['threads']} thread of an {machine['processor']}",
        "baseline": BASELINE,
        "sum": f"{SUM:g}",
        "mean": f"{MEAN:g}",
        "short": _short(study, counts),
        "time": _time(study),
        "settings": _settings(study),
    }


def _half(study: Study, part: str) -> str:
    cell = next(c for c in study.facts["cells"] if c["part"] == part)
    seeds = len(next(iter(cell["shows"].values())))
    return f"{len(cell['shows'])} combinations x {seeds} seeds"


def _versus(study: Study, counts: Sequence[int], label: str) -> str:
    """How CMLoRA's recall compares to a method's, number by number."""
    told: dict[str, list[str]] = {}
    for n in counts:
        verdict = study.verdict("recall", ("methods", n, BASELINE), ("methods", n, label))
        told.setdefault(verdict, []).append(str(n))
    return "; ".join(f"{verdict} at N = {', '.join(ns)}" for verdict, ns in told.items())


def _short(study: Study, counts: Sequence[int]) -> str:
    lines = []
    for n in counts:
        means = {
            label: [study.mean(score, "methods", n, label)[0] for score in SCORES]
            for label, _ in study.lines("methods", n)
        }
        best = sorted(means, key=lambda label: means[label][1], reverse=True)[:3]
        told = ", ".join(f"{name} {percent(means[name][1])}" for name in best)
        whole = max(means, key=lambda label: means[label][0])
        often = f"all of them at once most often by {whole}, in {percent(means[whole][0])} %"
        if not means[whole][0]:
            often = "nobody ever shows all of them"
        lines.append(f"- {n} LoRAs: most concepts are shown by {told} %; {often}.")
    others = [label for label, _ in study.lines("methods", counts[0]) if label != BASELINE]
    lines.append(f"- Concepts shown by {BASELINE}, compared with:")
    lines += [f"    - {label}: {_versus(study, counts, label)}" for label in others]
    return "\n".join(lines)


def _time(study: Study) -> str:
    lines = []
    for n in (3, 5):
        ours, theirs = (study.seconds("methods", n, label) for label in (BASELINE, "Composite"))
        work = [study.cell("methods", n, label)["gmacs"] for label in (BASELINE, "Composite")]
        lines.append(
            f"With {n} LoRAs {BASELINE} takes {ours:.2f} s an image, Composite {theirs:.2f} s, for "
            f"{work[0] / work[1]:.0%} of its multiply-accumulates."
        )
    return "\n".join(lines)


def _settings(study: Study) -> str:
    """Which settings the data tell from the default."""
    lines = []
    for label, _ in study.lines("choices", 3):
        for score in SCORES:
            place, base = ("choices", 3, label), ("choices", 3, "default")
            if label != "default" and study.verdict(score, place, base) != "undecided":
                told = signed(study.against(score, place, base))
                lines.append(f"- `{label}`: {score} {told}")
    if not lines:
        return "No setting can be told from the default here."
    return "Told from the default:\n\n" + "\n".join(lines)
