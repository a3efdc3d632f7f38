"""``cmlora demo``: one contact sheet of all methods, painted by the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .images import make_folder
from .painting_options import LARGEST_SEED, AsJson

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the sheet, its images and demo.json.")
    ] = Path("out"),
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of every image.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Paint one labelled contact sheet: no LoRA, each LoRA alone, and every method.

    The embedded model needs no download. An earlier demo's files in the folder are replaced.
    """
    from .quiet import quiet
    from .report import document, print_json, print_table, write_json

    make_folder(out)
    with quiet():
        from .demo_run import embedded_scene, paint_demo

        results = paint_demo(*embedded_scene(), out=out, steps=steps, seed=seed)
    report = document("demo", {"out": str(out), "steps": steps, "seed": seed}, **results)
    write_json(report, out / "demo.json")
    if as_json:
        print_json(report)
        return
    columns = ["image", "adapters", "seconds", "full rows", "shallow rows"]
    rows = [
        [c["label"], ", ".join(c["adapters"]), f"{c['seconds']:.2f}", c["full"], c["shallow"]]
        for c in results["cells"]
    ]
    print_table("cmlora demo", columns, rows)
    print(results["sheet"])
