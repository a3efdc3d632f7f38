"""``cmlora eval``: which method composes best, on a testbed, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    finite,
    option,
    painting,
)

__all__ = ["evaluate"]


def _scoring(help: str, *names: str, **limits: Any) -> Any:
    return option(help, *names, rich_help_panel="Scoring", **limits)


def evaluate(
    testbed: Annotated[str, option("embedded, or a folder with ComposLoRA.")] = "embedded",
    style: Annotated[
        str, option("Half of the testbed: anime or reality.", "--image-style")
    ] = "anime",
    lora_path: Annotated[Path | None, option("ComposLoRA: folder of {id}.safetensors.")] = None,
    lora_info_path: Annotated[Path | None, option("ComposLoRA: the info file.")] = None,
    compose: Annotated[int, option("LoRAs per image.", "--compose", "--compos-num", min=1)] = 2,
    combinations: Annotated[
        str | None,
        option(
            "all, a number, or a slice such as 8:16 of one fixed shuffled order. "
            "Left out: 4 of the embedded testbed, all of ComposLoRA."
        ),
    ] = None,
    seeds: Annotated[int, option("Seeds per combination and method.", min=1)] = 1,
    seed: Seed = 0,
    methods: Annotated[
        str,
        option(
            "Separated by commas; options in parentheses: 'merge,cmlora(cache_interval=3)'. "
            "Also no_lora: the prompt alone."
        ),
    ] = "no_lora,merge,switch,composite,cmlora",
    intervals: Annotated[
        str, option("Cache intervals for every method, e.g. 1,2,3,nonuniform.", "--interval")
    ] = "",
    out: Annotated[Path, option("Folder of the run; an unfinished run there goes on.")] = Path(
        "out/eval"
    ),
    model: Annotated[str | None, painting("Another checkpoint: directory, file or hub id.")] = None,
    vae: Annotated[str | None, painting("Another VAE: directory or hub id.")] = None,
    prompt: Annotated[str | None, painting("What every prompt starts with.")] = None,
    negative: Annotated[str | None, painting("What to avoid.")] = None,
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
    scorers: Annotated[
        str | None,
        _scoring(
            "Of embedded, clip, dino, reward, fidelity (PSNR and SSIM against the uncached image) "
            "and lpips. Left out: embedded, on the embedded testbed."
        ),
    ] = None,
    clip_model: Annotated[str, _scoring("Folder or hub id.")] = "openai/clip-vit-base-patch16",
    dino_model: Annotated[str, _scoring("Folder or hub id.")] = "facebook/dino-vits16",
    reward_model: Annotated[str, _scoring("File or name.")] = "ImageReward-v1.0",
    judge_url: Annotated[
        str | None,
        _scoring(
            "OpenAI-compatible endpoint of a vision language model, e.g. http://localhost:8000/v1: "
            "compares the first method with each other one, in both orders."
        ),
    ] = None,
    judge_model: Annotated[str | None, _scoring("Its name there.")] = None,
    judge_rubric: Annotated[str, _scoring("two (composition, quality) or four axes.")] = "two",
    judge_prices: Annotated[str, _scoring("Of a million tokens of question and answer.")] = "0,0",
    judge_key_env: Annotated[
        str, _scoring("Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    tie: Annotated[
        float, _scoring("Scores no further apart are tied.", min=0, callback=finite)
    ] = 0.0,
    by_combination: Annotated[
        bool,
        _scoring("Resample whole combinations for the intervals.", "--by-combination"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods on a testbed: scores with intervals, wins and losses, seconds.

    Every method gets the same combinations and seeds. Each finished image is kept with a line in
    manifest.jsonl, so a run that was stopped goes on where it was; results.json, results.csv and
    report.md lie beside.
    """
    arguments = {name: value for name, value in locals().items() if name != "as_json"}
    for name in ("out", "lora_path", "lora_info_path"):
        arguments[name] = None if arguments[name] is None else str(arguments[name])
    check_size(height, width)
    make_folder(out)
    from .quiet import quiet
    from .report import document, print_json, print_table

    with quiet():
        from .eval_run import run, write

        results = run(arguments)
        report = document("eval", arguments, **results)
        write(report, out)
    if as_json:
        print_json(report)
        return
    from cmlora_fast.eval.report import comparison_table, judge_note, method_table

    print_table("methods", *method_table(results))
    print_table("pairs on equal seeds", *comparison_table(results))
    if "judge" in results:
        print_table("judge", *comparison_table(results["judge"]))
        print(f"judge: {judge_note(results['judge'])}")
    print(out / "report.md")
