"""The measurements of ``cmlora bench throughput``: their document, table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmlora_fast.report import document, print_table, progress, provenance

from ..errors import CliError
from .options import ThroughputRequest
from .record import earlier_part, place, write

if TYPE_CHECKING:
    from ...benchmarks.engine.throughput import Setting

__all__ = ["run", "show"]

COLUMNS = ["N, method, weights", "images", "images/s", "s per call [quartiles]", "peak MiB"]


def run(settings: Sequence[Setting], request: ThroughputRequest) -> dict[str, Any]:
    """The document of one run, which also holds what earlier runs of the same left in ``out``."""
    import torch

    from ...benchmarks.engine import plots, throughput

    size, device, dtype = request.size, request.device.value, request.dtype.value
    if device == "cuda" and not torch.cuda.is_available():
        raise CliError("--device: no CUDA device is available to torch here")
    rounds = 1 if request.quick else request.rounds
    arguments = {**size.given, "device": device, "dtype": dtype, "rounds": rounds}
    report = document("bench throughput", arguments, **provenance())
    path = None if request.out is None else place(report, request.out, f"throughput-{size.name}")
    before = None if path is None else earlier_part(report, path)
    with progress(len(settings), "throughput") as advance:
        report["results"] = throughput.run(
            settings,
            **size.given,
            rounds=rounds,
            device=device,
            dtype=getattr(torch, dtype),
            advance=advance,
        )
    if path is not None:
        _add_earlier(report, before)
        write(report, path)
        plots.images_per_call(report["results"], caption(report), path.with_suffix(".png"))
    return report


def _add_earlier(report: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Settings that an earlier part left; those of this run replace them."""
    found = {
        (row["setting"], row["images"]): row
        for part in (before, report)
        if part is not None
        for row in part["results"]
    }
    report["results"] = sorted(found.values(), key=lambda row: (row["setting"], row["images"]))


def caption(report: dict[str, Any]) -> str:
    """What was measured where, in one line."""
    given, machine = report["arguments"], report["machine"]
    where = machine["gpus"][0] if given["device"] == "cuda" else machine["processor"]
    return (
        f"SD 1.5 topology, channels {', '.join(map(str, given['channels']))}, latents "
        f"{given['latents']}², {given['steps']} steps, rank 16, {given['dtype']}; {where}, "
        f"{machine['threads']} threads; {report['date']}, {report['commit']}"
    )


def show(report: dict[str, Any]) -> None:
    print(caption(report))
    print("peak: memory of the first call beyond the loaded pipeline, folds included.")
    rows = [
        [
            row["setting"],
            row["images"],
            f"{row['images_per_second']:.3f}",
            f"{row['median']:.2f} [{row['low']:.2f} {row['high']:.2f}]",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in report["results"]
    ]
    print_table("Throughput", COLUMNS, rows)
