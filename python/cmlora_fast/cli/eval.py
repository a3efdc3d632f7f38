"""``cmlora eval``: which method composes best, on a testbed, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CliError
from .images import make_folder

__all__ = ["evaluate"]


def _option(help: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=limits.pop("panel", None), **limits)


def _painting(help: str, *names: str, **limits: Any) -> Any:
    return _option(help, *names, panel="Painting (left out: the testbed's own)", **limits)


def _scoring(help: str, *names: str, **limits: Any) -> Any:
    return _option(help, *names, panel="Scoring", **limits)


def evaluate(
    testbed: Annotated[str, _option("embedded, or a folder with ComposLoRA.")] = "embedded",
    style: Annotated[str, _option("ComposLoRA: anime or reality.", "--image-style")] = "anime",
    lora_path: Annotated[Path | None, _option("ComposLoRA: folder of {id}.safetensors.")] = None,
    lora_info_path: Annotated[Path | None, _option("ComposLoRA: the info file.")] = None,
    compose: Annotated[int, _option("LoRAs per image.", "--compose", "--compos-num", min=1)] = 2,
    combinations: Annotated[
        str | None,
        _option(
            "all, a number, or a slice such as 8:16 of one fixed shuffled order. "
            "Left out: 4 of the embedded testbed, all of ComposLoRA."
        ),
    ] = None,
    seeds: Annotated[int, _option("Seeds per combination and method.", min=1)] = 1,
    seed: Annotated[int, _option("The first seed.", min=0)] = 0,
    methods: Annotated[
        str,
        _option(
            "Separated by commas; options in parentheses: 'merge,cmlora(cache_interval=3)'. "
            "Also no_lora: the prompt alone."
        ),
    ] = "no_lora,merge,switch,composite,cmlora",
    intervals: Annotated[
        str, _option("Cache intervals for every method, e.g. 1,2,3,nonuniform.", "--interval")
    ] = "",
    out: Annotated[Path, _option("Folder of the run; an unfinished run there goes on.")] = Path(
        "out/eval"
    ),
    model: Annotated[
        str | None, _painting("Another checkpoint: directory, file or hub id.")
    ] = None,
    vae: Annotated[str | None, _painting("Another VAE: directory or hub id.")] = None,
    prompt: Annotated[str | None, _painting("What every prompt starts with.")] = None,
    negative: Annotated[str | None, _painting("What to avoid.")] = None,
    steps: Annotated[
        int | None, _painting("Denoising steps.", "--steps", "--denoise-steps", min=1)
    ] = None,
    guidance_scale: Annotated[
        float | None, _painting("Guidance.", "--guidance-scale", "--cfg-scale")
    ] = None,
    height: Annotated[int | None, _painting("Pixels.", min=8)] = None,
    width: Annotated[int | None, _painting("Pixels.", min=8)] = None,
    scheduler: Annotated[str | None, _painting("As in cmlora generate.")] = None,
    lora_scale: Annotated[float | None, _painting("Multiplies every LoRA.")] = None,
    guidance_rescale: Annotated[float, _painting("Of the guided prediction.", min=0)] = 0.0,
    clip_skip: Annotated[int | None, _painting("Last text layers to leave out.", min=1)] = None,
    eta: Annotated[float, _painting("Of DDIM.", min=0)] = 0.0,
    dtype: Annotated[str, _painting("auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, _painting("auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[str, _painting("auto, fold or delta.")] = "auto",
    backend: Annotated[str, _painting("auto, cpu, cuda, triton or torch.")] = "auto",
    max_rows: Annotated[int | None, _painting("Most samples per UNet batch.", min=1)] = None,
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
    tie: Annotated[float, _scoring("Scores no further apart are tied.", min=0)] = 0.0,
    by_combination: Annotated[
        bool,
        _scoring("Resample whole combinations for the intervals.", "--by-combination"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare methods on a testbed: scores with intervals, wins and losses, seconds.

    Every method gets the same combinations and seeds. Each finished image is kept with a line in
    manifest.jsonl, so a run that was stopped goes on where it was; results.json, results.csv and
    report.md lie beside.
    """
    arguments = {name: value for name, value in locals().items() if name != "as_json"}
    for name in ("out", "lora_path", "lora_info_path"):
        arguments[name] = None if arguments[name] is None else str(arguments[name])
    for name in ("height", "width"):
        if arguments[name] is not None and arguments[name] % 8:
            raise CliError(f"--{name}: expected a multiple of 8; got {arguments[name]}")
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
