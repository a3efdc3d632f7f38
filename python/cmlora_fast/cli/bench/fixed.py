"""``cmlora bench pipeline --fixed``: its document and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmlora_fast.report import document, print_table, progress, provenance

from .record import place, write

__all__ = ["run", "show"]

COLUMNS = ["method", "over ms", "eager steps", "rest ms", "step ms", "walks", "reductions", "reads"]


def run(given: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The document of one run of ``benchmarks.engine.fixed`` with these arguments."""
    import torch

    from ...benchmarks.engine import fixed

    arguments = {**given, "threads": torch.get_num_threads(), "dtype": "float32"}
    report = document("bench pipeline --fixed", arguments, **provenance())
    path = None if out is None else place(report, out, "fixed")
    with progress(len(fixed.METHODS), "fixed cost") as advance:
        report |= fixed.run(**given, advance=advance)
    if path is not None:
        write(report, path)
    return report


def show(report: dict[str, Any]) -> None:
    """A row per method."""
    given = report["arguments"]
    print(
        f"SDXL's layers at toy width, {given['adapters']} adapter(s), {report['modules']} modules; "
        "images of {} and {} steps, ".format(*given["steps"])
        + f"{given['rounds']} round(s).\n"
        "rest: an image beside its steps. over: beyond diffusers' own with the adapters disabled; "
        "in eager steps of the plain pipeline.\n"
        "walks, reductions, reads: what the engine does on the host in an image of the lower count."
    )
    print_table("fixed cost", COLUMNS, [_cells(found) for found in report["results"]])


def _cells(found: dict[str, Any]) -> list[str]:
    spreads = (found[name] for name in ("over_ms", "rest_ms", "step_ms"))
    over, rest, step = (f"{s['median']:.0f} [{s['low']:.0f} {s['high']:.0f}]" for s in spreads)
    steps = found["eager_steps"]
    ratio = f"{steps['median']:.2f} [{steps['low']:.2f} {steps['high']:.2f}]"
    counts = [str(found["counts"][name]) for name in ("walks", "reductions", "reads")]
    return [found["contender"], over, ratio, rest, step, *counts]
