"""``cmlora generate``: images from a model and LoRAs, parameters kept inside the PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CliError

__all__ = ["generate"]

MULTIPLE = 8  # of height and width, in pixels


def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to paint.")],
    model: Annotated[
        str,
        typer.Option(
            help="embedded, a diffusers directory, a .safetensors checkpoint or a hub id."
        ),
    ] = "embedded",
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA file and weight as path:weight (weight 1 if left out); repeatable. "
            "With the embedded model also its ids, such as character_1:0.8."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="none (lossless), merge, switch, composite or cmlora.")
    ] = "none",
    method_option: Annotated[
        list[str] | None,
        typer.Option(help="A field of the method as key=value; repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance_scale: Annotated[float, typer.Option(help="Guidance; up to 1: none.")] = 7.0,
    seed: Annotated[int, typer.Option(help="Of the first image; each next one adds 1.")] = 0,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own if left out.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own if left out.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddim, pndm, euler, euler-a, heun, dpm++, dpm++-karras, unipc or lcm; "
            "the model's own if left out."
        ),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images, in one batch.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    weights: Annotated[str, typer.Option(help="auto, fold or delta.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, cpu, cuda, triton or torch.")] = "auto",
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Most samples per UNet batch; bounds the memory.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The PNG file; a number is added rather than overwriting one.")
    ] = Path("cmlora.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Paint images with several LoRAs and keep all parameters in the PNG's metadata."""
    arguments = {key: value for key, value in locals().items() if key != "as_json"}
    arguments["out"] = str(out)
    from .generate_run import run
    from .quiet import quiet
    from .report import document, print_json

    check(height, width, out)
    with quiet():
        results = run(arguments)
    if as_json:
        print_json(document("generate", arguments, **results))
    else:
        print(describe(results))


def check(height: int | None, width: int | None, out: Path) -> None:
    """Refuse what is known to be wrong before anything is loaded."""
    for name, value in (("--height", height), ("--width", width)):
        if value is not None and (value < MULTIPLE or value % MULTIPLE):
            raise CliError(f"{name}: expected a multiple of {MULTIPLE}; got {value}")
    if out.suffix.lower() != ".png":
        raise CliError(f"--out: expected a file that ends in .png; got {str(out)!r}")
    if out.is_dir():
        raise CliError(f"--out {out}: is a directory; expected a file")


def describe(results: dict[str, Any]) -> str:
    """The answer without ``--json``: the files, then what ran."""
    steps = results["summary"]["steps"]
    full = sum(step["full_rows"] for step in steps)
    shallow = sum(step["shallow_rows"] for step in steps)
    ran = f"{len(steps)} steps, {full} full and {shallow} shallow rows, {results['seconds']:.2f} s"
    return "\n".join([*results["images"], ran])
