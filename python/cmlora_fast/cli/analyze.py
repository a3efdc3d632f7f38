"""``cmlora analyze``: the pictures that explain a method, with the data beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .images import make_folder
from .painting_options import (
    AsJson,
    Backend,
    ClipSkip,
    Device,
    Dtype,
    Eta,
    GuidanceRescale,
    GuidanceScale,
    LoraScale,
    MaxRows,
    Pixels,
    Scheduler,
    Seed,
    Steps,
    Weights,
    check_size,
    option,
)

__all__ = ["analyze"]


def analyze(
    lora: Annotated[
        list[str],
        option("LoRA file and weight as path:weight, or an embedded model's id; repeatable."),
    ],
    model: Annotated[str, option("As in cmlora generate.")] = "embedded",
    prompt: Annotated[
        str | None, option("Left out: the trigger words of embedded LoRAs.", "--prompt", "-p")
    ] = None,
    negative: Annotated[str | None, option("What to avoid.")] = None,
    method: Annotated[
        str, option("One method, options in parentheses: 'cmlora(cache_interval=3)'.")
    ] = "cmlora",
    parts: Annotated[
        str, option("Of frequency, similarity, timeline, difference and macs.")
    ] = "frequency,similarity,timeline,difference,macs",
    seeds: Annotated[int, option("Seeds that the frequencies are averaged over.", min=1)] = 3,
    seed: Seed = 0,
    beside: Annotated[
        bool, option("Save the frequency profile beside the first LoRA file, too.", "--beside")
    ] = False,
    out: Annotated[Path, option("Folder of the pictures and their data.")] = Path("out/analyze"),
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    height: Pixels = None,
    width: Pixels = None,
    scheduler: Scheduler = None,
    lora_scale: LoraScale = None,
    guidance_rescale: GuidanceRescale = 0.0,
    clip_skip: ClipSkip = None,
    eta: Eta = 0.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    weights: Weights = "auto",
    backend: Backend = "auto",
    max_rows: MaxRows = None,
    as_json: AsJson = False,
) -> None:
    """Measure and draw what a method does with these LoRAs.

    Frequencies each LoRA adds, with the order and partition that follow; how alike its features
    are from step to step; when each cache was refreshed; what caching changes in the image;
    multiply-accumulates. A PNG and a JSON file for each.
    """
    arguments = {name: value for name, value in locals().items() if name != "as_json"}
    arguments["out"] = str(out)
    check_size(height, width)
    make_folder(out)
    from .quiet import quiet
    from .report import document, print_json, write_json

    with quiet():
        from .analyze_run import run

        results = run(arguments)
        report = document("analyze", arguments, **results)
        write_json(report, out / "analyze.json")
    if as_json:
        print_json(report)
    else:
        print("\n".join([*results["notes"], *results["pictures"]]))
