"""``cmlora grid``: a labelled table of images over LoRAs, weights, methods, caching and seeds."""

from __future__ import annotations

from cmlora_fast.report import print_json, write_json

from .images import make_folder
from .options import AsJson, expanded
from .quiet import quiet
from .requests import GridRequest

__all__ = ["grid"]


@expanded
def grid(request: GridRequest, as_json: AsJson = False) -> None:
    """Paint a table: a row per set of LoRAs, weight and seed, a column per method.

    The first column is the model without LoRA. Seconds and score stand below each image; grid.html
    opens without a server, grid.png is one picture, grid.json holds the numbers.
    """
    make_folder(request.out)
    with quiet():
        from .grid_run import run

        report = run(request)
        write_json(report, request.out / "grid.json")
    if as_json:
        print_json(report)
    else:
        print(f"{report['html']}\n{report['png']}")
