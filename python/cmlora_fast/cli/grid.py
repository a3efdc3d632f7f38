"""``cmlora grid``: a labelled table of images over LoRAs, weights, methods, caching and seeds."""

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

__all__ = ["grid"]


def grid(
    lora: Annotated[
        list[str],
        option("LoRA file and weight as path:weight, or an embedded model's id; repeatable."),
    ],
    model: Annotated[str, option("As in cmlora generate.")] = "embedded",
    prompt: Annotated[
        str | None, option("Left out: the trigger words of embedded LoRAs.", "--prompt", "-p")
    ] = None,
    negative: Annotated[str | None, option("What to avoid.")] = None,
    sets: Annotated[
        list[str] | None,
        option("LoRAs used together, as name+name; repeatable. Left out: all.", "--set"),
    ] = None,
    weight: Annotated[str, option("Factors on every LoRA's weight, e.g. 0.6,0.8,1.")] = "1",
    methods: Annotated[str, option("As in cmlora eval.")] = "merge,switch,composite,cmlora",
    intervals: Annotated[str, option("Cache intervals, as in cmlora eval.", "--interval")] = "",
    seeds: Annotated[int, option("Seeds, a row each.", min=1)] = 1,
    seed: Seed = 0,
    scorers: Annotated[
        str | None,
        option("Of embedded, clip and reward. Left out: embedded, for embedded LoRAs."),
    ] = None,
    clip_model: Annotated[str, option("Folder or hub id.")] = "openai/clip-vit-base-patch16",
    reward_model: Annotated[str, option("File or name.")] = "ImageReward-v1.0",
    out: Annotated[Path, option("Folder; an unfinished grid there goes on.")] = Path("out/grid"),
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
    """Paint a table: a row per set of LoRAs, weight and seed, a column per method.

    The first column is the model without LoRA. Seconds and score stand below each image; grid.html
    opens without a server, grid.png is one picture, grid.json holds the numbers.
    """
    arguments = {name: value for name, value in locals().items() if name != "as_json"}
    arguments["out"] = str(out)
    check_size(height, width)
    make_folder(out)
    from .quiet import quiet
    from .report import document, print_json, write_json

    with quiet():
        from .grid_run import run

        results = run(arguments)
        report = document("grid", arguments, **results)
        write_json(report, out / "grid.json")
    if as_json:
        print_json(report)
    else:
        print(f"{results['html']}\n{results['png']}")
