"""``cmlora generate``: images from a model and LoRAs, parameters kept inside the PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from .errors import CliError
from .images import make_folder
from .painting_options import LARGEST_SEED, MULTIPLE, AsJson, check_size, finite, option

__all__ = ["generate"]

Prompt = Annotated[str, option("What to paint.", "--prompt", "-p")]
Model = Annotated[
    str, option("embedded, a diffusers directory, a .safetensors checkpoint or a hub id.")
]
Negative = Annotated[str, option("What to avoid.")]
Loras = Annotated[
    list[str] | None,
    option(
        "LoRA file and weight as path:weight (weight 1 if left out); repeatable. "
        "With the embedded model also its ids, such as character_1:0.8 or reality/style_2."
    ),
]
MethodName = Annotated[str, option("none (lossless), merge, switch, composite, cmlora or clora.")]
MethodOptions = Annotated[
    list[str] | None, option("A field of the method as key=value; repeatable.")
]
Concepts = Annotated[
    list[str] | None,
    option(
        "For clora: adapter=subject[:trigger], the adapter (its file's stem) that draws these "
        "words of the prompt, and the words that call it; repeatable.",
        "--concept",
    ),
]
Masks = Annotated[
    list[str] | None,
    option(
        "For composite, cmlora and clora: adapter=picture, white where the adapter draws; "
        "repeatable.",
        "--mask",
    ),
]
SaveMaps = Annotated[
    Path | None,
    option("For clora: a folder for attention maps and masks of every step, and a filmstrip."),
]
Steps = Annotated[int, option("Denoising steps.", min=1)]
Guidance = Annotated[
    float | None, option("Guidance, up to 1: none. Left out: 7.5.", callback=finite)
]
Seed = Annotated[int, option("Of the first image; each next one adds 1.", min=0, max=LARGEST_SEED)]
Pixels = Annotated[int | None, option("Pixels; left out: the model's own.", min=MULTIPLE)]
SchedulerName = Annotated[
    str | None,
    option(
        "ddim, pndm, euler, euler-a, heun, dpm++, dpm++-karras, unipc or lcm; "
        "left out: the model's own."
    ),
]
Count = Annotated[int, option("Images, in one batch.", min=1)]
Dtype = Annotated[str, option("auto, float32, float16 or bfloat16.")]
Device = Annotated[str, option("auto, cpu, cuda or cuda:N.")]
Weights = Annotated[str, option("Of adapted layers: auto, fold or delta.")]
Backend = Annotated[str, option("Of the ops: auto, cpu, cuda, triton or torch.")]
MaxRows = Annotated[int | None, option("Most samples per UNet batch; bounds the memory.", min=1)]
Out = Annotated[Path, option("The PNG file; gets a number rather than overwrite another.")]


def generate(
    prompt: Prompt,
    model: Model = "embedded",
    negative: Negative = "",
    lora: Loras = None,
    method: MethodName = "none",
    method_option: MethodOptions = None,
    concept: Concepts = None,
    mask: Masks = None,
    save_maps: SaveMaps = None,
    steps: Steps = 20,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    height: Pixels = None,
    width: Pixels = None,
    scheduler: SchedulerName = None,
    num_images: Count = 1,
    dtype: Dtype = "auto",
    device: Device = "auto",
    weights: Weights = "auto",
    backend: Backend = "auto",
    max_rows: MaxRows = None,
    out: Out = Path("cmlora.png"),
    as_json: AsJson = False,
) -> None:
    """Paint images with several LoRAs and keep all parameters in the PNG's metadata."""
    arguments = {key: value for key, value in locals().items() if key != "as_json"}
    arguments["out"] = str(out)
    check_size(height, width)
    _check_out(out)
    if save_maps is not None:
        if method != "clora":
            raise CliError(f"--save-maps: only --method clora has maps; got --method {method}")
        make_folder(save_maps, "--save-maps")
        arguments["save_maps"] = str(save_maps)
    from .quiet import quiet
    from .report import document, print_json

    with quiet():
        from .generate_run import run

        results = run(arguments)
    if as_json:
        print_json(document("generate", arguments, **results))
    else:
        print(_text(results))


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise CliError(f"--out {out}: is a directory; expected a file that ends in .png")
    if out.suffix.lower() != ".png":
        raise CliError(f"--out: expected a file that ends in .png; got {str(out)!r}")
    make_folder(out.parent)


def _text(results: dict[str, Any]) -> str:
    """The answer without ``--json``: the files, then what ran."""
    steps = results["summary"]["steps"]
    full = sum(step["full_rows"] for step in steps)
    shallow = sum(step["shallow_rows"] for step in steps)
    ran = f"{len(steps)} steps, {full} full and {shallow} shallow rows, {results['seconds']:.2f} s"
    maps = [results["filmstrip"]] if "filmstrip" in results else []
    return "\n".join([*results["images"], *maps, ran])
