"""``cmlora demo``: one contact sheet of all methods, painted by the embedded model."""

from __future__ import annotations

from dataclasses import asdict

from cmlora_fast.report import document, print_json, print_table, write_json

from .images import make_folder
from .options import AsJson, expanded
from .quiet import quiet
from .requests import DemoRequest

__all__ = ["demo"]


@expanded
def demo(request: DemoRequest, as_json: AsJson = False) -> None:
    """Paint one labelled contact sheet: no LoRA, each LoRA alone, and every method.

    The embedded model needs no download. An earlier demo's files in the folder are replaced.
    """
    make_folder(request.out)
    with quiet():
        from .demo_run import embedded_subject, paint_demo

        results = paint_demo(*embedded_subject(), **asdict(request))
        report = document("demo", asdict(request), **results)
    write_json(report, request.out / "demo.json")
    if as_json:
        print_json(report)
        return
    columns = ["image", "adapters", "seconds", "full rows", "shallow rows"]
    rows = [
        [c["label"], ", ".join(c["adapters"]), f"{c['seconds']:.2f}", c["full"], c["shallow"]]
        for c in report["cells"]
    ]
    print_table("cmlora demo", columns, rows)
    print(report["sheet"])
