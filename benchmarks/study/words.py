"""The passages of docs/study.md that state numbers; the rest stands in template.md."""

from __future__ import annotations

from collections.abc import Sequence

from .sets import BASELINE, MEAN, SUM
from .tables import SCORES, Study, percent, signed

__all__ = ["findings"]


def findings(study: Study, counts: Sequence[int]) -> dict[str, str]:
    """Name -> passage, for the template."""
    painting = study.facts["arguments"]["generation"]
    machine = study.timing["machine"]
    return {
        "report": _half(study, "methods", counts),
        "choice": _half(study, "choices", (3,)),
        "painting": f"{painting['steps']} steps of DPM-Solver++, guidance "
        f"{painting['guidance_scale']:g}, 64 x 64 pixels.",
        "repeats": str(len(study.timing["timings"][0]["seconds"])),
        "machine": f"{study.timing['arguments']['threads']} thread of an {machine['processor']}",
        "baseline": BASELINE,
        "sum": f"{SUM:g}",
        "mean": f"{MEAN:g}",
        "short": _short(study, counts),
        "time": _time(study),
        "settings": _settings(study, "choices", ("choices", 3, "default")),
        "branch": f"{_work(study, 'cache branch (0, 0)'):.0%}",
        "confirmed": _settings(study, "checked", ("methods", 3, BASELINE)),
    }


def _half(study: Study, part: str, counts: Sequence[int]) -> str:
    """Combinations and seeds per line; then the numbers of LoRAs that have others."""
    lines = {n: study.cell(part, n, study.lines(part, n)[0][0])["shows"] for n in counts}
    sizes = {
        n: f"{len(s)} combinations x {len(next(iter(s.values())))} seeds" for n, s in lines.items()
    }
    usual = sizes[counts[0]]
    others = [f", {size} with {n} LoRAs" for n, size in sizes.items() if size != usual]
    return usual + "".join(others)


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


def _work(study: Study, label: str) -> float:
    """Multiply-accumulates of a checked setting, as a share of the default's."""
    ours, default = ("checked", 3, label), ("methods", 3, BASELINE)
    return study.cell(*ours)["gmacs"] / study.cell(*default)["gmacs"]


def _settings(study: Study, part: str, base: tuple[str, int, str]) -> str:
    """Which settings the data tell from the default."""
    lines = []
    for label, _ in study.lines(part, 3):
        for score in SCORES:
            place = part, 3, label
            if place != base and study.verdict(score, place, base) != "undecided":
                lines.append(f"- `{label}`: {score} {signed(study.against(score, place, base))}")
    if not lines:
        return "No setting can be told from the default here."
    return "Told from the default:\n\n" + "\n".join(lines)
