"""``cmlora analyze``: the pictures that explain a method, with the data beside them."""

from __future__ import annotations

from cmlora_fast.report import print_json, write_json

from .images import make_folder
from .options import AsJson, expanded
from .quiet import quiet
from .requests import AnalyzeRequest

__all__ = ["analyze"]


@expanded
def analyze(request: AnalyzeRequest, as_json: AsJson = False) -> None:
    """Measure and draw what a method does with these LoRAs.

    Frequencies each LoRA adds, with the order and partition that follow; how alike its features
    are from step to step; when each cache was refreshed; what caching changes in the image;
    multiply-accumulates. A PNG and a JSON file for each.
    """
    make_folder(request.out)
    with quiet():
        from .analyze_run import run

        report = run(request)
        write_json(report, request.out / "analyze.json")
    if as_json:
        print_json(report)
    else:
        print("\n".join([*report["notes"], *report["pictures"]]))
