"""The measurements of ``cmlora bench pipeline``: their document, table and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmlora_fast.report import document, print_table, progress, provenance, version_of

from .options import Size
from .record import earlier_part, place, write

__all__ = ["run", "run_clora", "show", "show_clora"]

COLUMNS = ["contender", "s [quartiles]", "images", "limit s", "share", "equal", "uncached"]
MEMORY = ["peak MiB", "fold s"]
RATIOS = ["contender", "times as fast as", "ratio of medians [95 %]"]


def run(
    size: Size,
    adapters: tuple[int, ...],
    images: int,
    names: tuple[str, ...],
    out: Path | None,
) -> dict[str, Any]:
    """The document of one run, which also holds what earlier runs of the same left in ``out``."""
    import torch

    from ...benchmarks.engine import contenders, pipeline

    missing = [name for name in names if not contenders.available(name)]
    names = tuple(name for name in names if name not in missing)
    arguments = {
        **size.given,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "adapters": adapters,
        "images": images,
        "contenders": names,
    }
    report = document("bench pipeline", arguments, **provenance(), not_installed=missing)
    report["versions"]["DeepCache"] = version_of("DeepCache")
    path = None if out is None else place(report, out, f"pipeline-{size.name}")
    before = None if path is None else earlier_part(report, path)
    with progress(pipeline.painted_images(adapters, images, names), "pipelines") as advance:
        timed = {"adapters": adapters, "images": images, "names": names}
        report |= pipeline.run(**size.given, **timed, advance=advance)
    if before is not None:
        report = pipeline.merged(before, report)
    report["rows"] = pipeline.compared(report)
    if path is not None:
        write(report, path)
        _draw(report, path)
    return report


def _draw(report: dict[str, Any], path: Path) -> None:
    from ...benchmarks.engine import plots

    caption = _caption(report)
    rows = [record | row for record, row in zip(report["results"], report["rows"], strict=True)]
    plots.time_against_adapters(rows, caption, path.with_name(f"{path.stem}-time.png"))
    plots.cost_against_deviation(rows, caption, path.with_name(f"{path.stem}-deviation.png"))


def _caption(report: dict[str, Any]) -> str:
    given, machine = report["arguments"], report["machine"]
    channels = ", ".join(map(str, given["channels"]))
    return (
        f"SD 1.5 topology, channels {channels}, latents {given['latents']}², {given['steps']} "
        f"steps, rank 16, {given['dtype']}; {machine['processor']}, {given['threads']} threads; "
        f"{report['date']}, {report['commit']}"
    )


def show(report: dict[str, Any]) -> None:
    """One table per number of adapters."""
    print(_caption(report))
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in report["rates"].items())
    print(
        f"GFLOP/s measured: {rates}.\n"
        "limit: the operations of the rows that ran, without LoRA, at the best rate.\n"
        "equal: largest difference to the rival that paints the same image, over the largest "
        "latent; uncached: to its own image without caching.\n"
        "peak: memory of an image of two steps beyond the loaded pipeline, folds included."
    )
    for name in report["not_installed"]:
        print(f"{name}: not installed, left out")
    both = [record | row for record, row in zip(report["results"], report["rows"], strict=True)]
    for count in dict.fromkeys(row["adapters"] for row in both):
        own = [row for row in both if row["adapters"] == count]
        print_table(f"{count} adapter(s)", COLUMNS + MEMORY, [_cells(row) for row in own])
        ratios = [
            [row["contender"], other, _interval(found)]
            for row in own
            for other, found in row["times_as_fast"].items()
        ]
        if ratios:
            print_table(f"{count} adapter(s), ratios", RATIOS, ratios)


def _cells(row: dict[str, Any]) -> list[str]:
    peak, fold = row["peak_bytes"], row["weight_seconds"]
    return [
        row["contender"],
        f"{row['median']:.2f} [{row['low']:.2f} {row['high']:.2f}]",
        str(row["images"]),
        f"{row['limit']:.2f}" if "limit" in row else "",
        f"{row['share_of_limit']:.0%}" if "limit" in row else "",
        f"{row['same_as']['relative']:.0e}" if "same_as" in row else "",
        f"{row['uncached']['relative']:.1e}" if "uncached" in row else "",
        "" if peak is None else f"{peak / 2**20:.0f}",
        "" if fold is None else f"{fold:.2f}",
    ]


def _interval(found: dict[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['ratio']:.2f}"
    return f"{found['ratio']:.2f} [{found['low']:.2f} {found['high']:.2f}]"


def run_clora(
    size: Size,
    adapters: tuple[int, ...],
    images: int,
    out: Path | None,
) -> dict[str, Any]:
    """CLoRA against a straightforward loop, for every number of concepts."""
    from ...benchmarks.clora import __main__ as clora

    arguments = {
        "method": "clora",
        **size.given,
        "adapters": adapters,
        "images": images,
    }
    report = document("bench pipeline", arguments, **provenance(), results=[])
    path = None if out is None else place(report, out, f"clora-{size.name}")
    with progress(len(adapters), "CLoRA") as advance:
        for concepts in adapters:
            report["results"].append(
                clora.measure(
                    channels=size.given["channels"],
                    size=size.latents,
                    concepts=concepts,
                    steps=size.steps,
                    rounds=images,
                )
            )
            advance()
    if path is not None:
        write(report, path)
    return report


def show_clora(report: dict[str, Any]) -> None:
    columns = ["concepts", "loop s", "cmlora_fast s", "times as fast", "peak of the loop's"]
    rows = []
    for found in report["results"]:
        loop, ours = (found["contenders"][n]["seconds"]["median"] for n in ("loop", "cmlora_fast"))
        rows.append(
            [
                found["arguments"]["concepts"],
                f"{loop:.2f}",
                f"{ours:.2f}",
                f"{found['speedup']:.2f}",
                f"{found['memory_ratio']:.2f}",
            ]
        )
    print_table("CLoRA", columns, rows)
