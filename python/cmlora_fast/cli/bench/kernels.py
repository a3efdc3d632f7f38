"""The measurements of ``cmlora bench kernels``, their document and their table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmlora_fast.report import document, print_table, progress, provenance

from .record import earlier_part, place, write

__all__ = ["run", "show"]

COLUMNS = ["case", "ran", "µs [quartiles]", "GB/s (copy)", "GFLOP/s (GEMM)", "times as fast as"]


def run(
    chosen: Sequence[str],
    dtype: str,
    isa: str | None,
    seconds: float,
    quick: bool,
    out: Path | None,
) -> dict[str, Any]:
    """The document of one run; also written to the directory ``out``, if there is one.

    Ops measured before that the directory holds of the same commit and settings stay in it, and
    the machine's rates are those of the first part.
    """
    import torch

    from ... import ops
    from ...benchmarks.ops import kernels

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    listed = kernels.cases(chosen, kind, quick)
    arguments = {"op": list(chosen), "dtype": dtype, "isa": isa, "seconds": seconds, "quick": quick}
    report = document("bench kernels", arguments, **provenance())
    path = None if out is None else place(report, out, "kernels")
    before = None if path is None else earlier_part(report, path)
    results = [row for row in before["results"] if row["op"] not in chosen] if before else []
    with ops.force(isa=isa), torch.no_grad(), progress(len(listed) + 1, "machine") as advance:
        rates = before["rates"] if before else kernels.machine_rates(kind)
        for op, case, make in listed:
            advance(description=f"{op} {case}")
            row = {"op": op, "case": case, **kernels.measure(op, make(), seconds, rates)}
            results.append(row)
        advance()
    arguments["op"] = list(dict.fromkeys(row["op"] for row in results))
    report |= {"rates": rates, "results": results}
    if path is not None:
        write(report, path)
    return report


def show(report: dict[str, Any]) -> None:
    """One table per op."""
    rates, threads = report["rates"], report["machine"]["threads"]
    print(
        f"{report['arguments']['dtype']}, {threads} threads; this machine copies "
        f"{rates['copy_gb_per_s']:.0f} GB/s and multiplies at {rates['gemm_gflop_per_s']:.0f} "
        "GFLOP/s. Beyond 100 % of the copy the data came from the caches."
    )
    for op in report["arguments"]["op"]:
        rows = [_cells(row) for row in report["results"] if row["op"] == op]
        print_table(op, [*COLUMNS, "error (torch's)"], rows)


def _cells(row: dict[str, Any]) -> list[str]:
    ours = row["microseconds"]["ours"]
    flops = "gflop_per_s" in row
    faster = ", ".join(f"{name} {value:.2f}" for name, value in row["speedup"].items())
    return [
        row["case"],
        row["ran"],
        "{median:.0f} [{low:.0f} {high:.0f}]".format(**ours),
        f"{row['gb_per_s']:.1f} ({row['copy_share']:.0%})",
        f"{row['gflop_per_s']:.0f} ({row['gemm_share']:.0%})" if flops else "",
        faster,
        f"{row['error']:.1e} ({row['twin_error']:.1e})",
    ]
