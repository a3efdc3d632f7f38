"""The profile of ``cmlora bench pipeline --profile``: its document and table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmlora_fast.report import document, print_table, progress, provenance

from .options import Size
from .record import place, write

__all__ = ["run", "show"]

COLUMNS = ["kind of layer", "calls", "seconds", "limit s", "lost s"]


def run(size: Size, adapters: int, names: Sequence[str], out: Path | None) -> dict[str, Any]:
    """The document of one run."""
    import torch

    from ...benchmarks.engine import losses

    arguments = {
        **size.given,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "adapters": adapters,
        "contenders": names,
    }
    report = document("bench pipeline --profile", arguments, **provenance())
    path = None if out is None else place(report, out, f"profile-{size.name}")
    with progress(len(names), "profiles") as advance:
        report |= losses.run(**size.given, adapters=adapters, names=names, advance=advance)
    if path is not None:
        write(report, path)
    return report


def show(report: dict[str, Any]) -> None:
    """One table per contender."""
    rate = max(report["rates"].values())
    print(f"limit: operations without LoRA at {rate / 1e9:.0f} GFLOP/s, the best rate measured")
    for found in report["results"]:
        limit = sum(kind["limit"] for kind in found["kinds"])
        total = {"kind": "all", "calls": None, "seconds": found["seconds"], "limit": limit}
        rows = [
            [
                kind["kind"],
                "" if kind["calls"] is None else kind["calls"],
                f"{kind['seconds']:.3f}",
                f"{kind['limit']:.3f}",
                f"{kind['seconds'] - kind['limit']:.3f}",
            ]
            for kind in (*found["kinds"], total)
        ]
        title = (
            f"{found['contender']}, {found['adapters']} adapter(s): {limit / found['seconds']:.0%}"
        )
        print_table(f"{title} of the limit", COLUMNS, rows)
