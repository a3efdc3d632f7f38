"""The options of each verb, declared once; a verb gets and hands on the whole, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .options import LARGEST_SEED, Painting, finite, guidance_option, option, painting, steps_option

__all__ = [
    "AnalyzeRequest",
    "DemoRequest",
    "EvalRequest",
    "GenerateRequest",
    "GridRequest",
    "LoraRequest",
    "Scored",
]


def scoring(help: str, *names: str, **limits: Any) -> Any:
    return option(help, *names, rich_help_panel="Scoring", **limits)


Loras = option(
    "LoRA file and weight as path:weight (weight 1 if left out); repeatable. "
    "With the embedded model also its ids, such as character_1:0.8 or reality/style_2."
)
Model = Annotated[
    str, option("embedded, a diffusers directory, a .safetensors checkpoint or a hub id.")
]
Prompt = "--prompt", "-p"


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """The options of ``cmlora demo``."""

    out: Annotated[Path, option("Folder for the sheet, its images and demo.json.")] = Path("out")
    steps: Annotated[int, option("Denoising steps.", min=1)] = 20
    seed: Annotated[int, option("Seed of every image.", min=0, max=LARGEST_SEED)] = 0


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(Painting):
    """The options of ``cmlora generate``."""

    prompt: Annotated[str, option("What to paint.", *Prompt)]
    model: Model = "embedded"
    negative: Annotated[str, option("What to avoid.")] = ""
    lora: Annotated[list[str] | None, Loras] = None
    method: Annotated[
        str, option("none (lossless), merge, switch, composite, cmlora or clora.")
    ] = "none"
    method_option: Annotated[
        list[str] | None, option("A field of the method as key=value; repeatable.")
    ] = None
    concept: Annotated[
        list[str] | None,
        option(
            "For clora: adapter=subject[:trigger], the adapter (its file's stem) that draws these "
            "words of the prompt, and the words that call it; repeatable."
        ),
    ] = None
    mask: Annotated[
        list[str] | None,
        option(
            "For composite, cmlora and clora: adapter=picture, white where the adapter draws; "
            "repeatable."
        ),
    ] = None
    save_maps: Annotated[
        Path | None,
        option("For clora: a folder for attention maps and masks of every step, and a filmstrip."),
    ] = None
    num_images: Annotated[int, option("Images, in one batch.", min=1)] = 1
    out: Annotated[Path, option("The PNG file; gets a number rather than overwrite another.")] = (
        Path("cmlora.png")
    )


@dataclass(frozen=True, kw_only=True)
class _Studied(Painting):
    """What the verbs of the laboratory add, and the names that ComposLoRA's scripts have."""

    steps: Annotated[int | None, steps_option("--denoise-steps")] = None
    guidance_scale: Annotated[float | None, guidance_option("--cfg-scale")] = None
    lora_scale: Annotated[float | None, painting("Multiplies every LoRA.", callback=finite)] = None
    guidance_rescale: Annotated[
        float, painting("Of the guided prediction.", min=0, callback=finite)
    ] = 0.0
    clip_skip: Annotated[int | None, painting("Last text layers to leave out.", min=1)] = None
    eta: Annotated[float, painting("Of DDIM.", min=0, callback=finite)] = 0.0


@dataclass(frozen=True, kw_only=True)
class LoraRequest(_Studied):
    """LoRAs by file, on any model."""

    lora: Annotated[list[str], Loras]
    model: Model = "embedded"
    prompt: Annotated[
        str | None, option("Left out: the trigger words of embedded LoRAs.", *Prompt)
    ] = None
    negative: Annotated[str | None, option("What to avoid.")] = None


@dataclass(frozen=True, kw_only=True)
class Scored(_Studied):
    """Images that are scored."""

    dino_model = "facebook/dino-vits16"  # an option of eval's alone
    clip_model: Annotated[str, scoring("Folder or hub id.")] = "openai/clip-vit-base-patch16"
    reward_model: Annotated[str, scoring("File or name.")] = "ImageReward-v1.0"


@dataclass(frozen=True, kw_only=True)
class GridRequest(LoraRequest, Scored):
    """The options of ``cmlora grid``."""

    sets: Annotated[
        list[str] | None,
        option("LoRAs used together, as name+name; repeatable. Left out: all.", "--set"),
    ] = None
    weight: Annotated[str, option("Factors on every LoRA's weight, e.g. 0.6,0.8,1.")] = "1"
    methods: Annotated[str, option("As in cmlora eval.")] = "merge,switch,composite,cmlora"
    intervals: Annotated[str, option("Cache intervals, as in cmlora eval.", "--interval")] = ""
    seeds: Annotated[int, option("Seeds, a row each.", min=1)] = 1
    scorers: Annotated[
        str | None,
        scoring("Of embedded, clip and reward. Left out: embedded, for embedded LoRAs."),
    ] = None
    out: Annotated[Path, option("Folder; an unfinished grid there goes on.")] = Path("out/grid")


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(LoraRequest):
    """The options of ``cmlora analyze``."""

    method: Annotated[
        str, option("One method, options in parentheses: 'cmlora(cache_interval=3)'.")
    ] = "cmlora"
    parts: Annotated[str, option("Of frequency, similarity, timeline, difference and macs.")] = (
        "frequency,similarity,timeline,difference,macs"
    )
    seeds: Annotated[int, option("Seeds that the frequencies are averaged over.", min=1)] = 3
    beside: Annotated[
        bool, option("Save the frequency profile beside the first LoRA file, too.", "--beside")
    ] = False
    out: Annotated[Path, option("Folder of the pictures and their data.")] = Path("out/analyze")


@dataclass(frozen=True, kw_only=True)
class EvalRequest(Scored):
    """The options of ``cmlora eval``."""

    testbed: Annotated[str, option("embedded, or a folder with ComposLoRA.")] = "embedded"
    style: Annotated[str, option("Half of the testbed: anime or reality.", "--image-style")] = (
        "anime"
    )
    lora_path: Annotated[Path | None, option("ComposLoRA: folder of {id}.safetensors.")] = None
    lora_info_path: Annotated[Path | None, option("ComposLoRA: the info file.")] = None
    compose: Annotated[int, option("LoRAs per image.", "--compose", "--compos-num", min=1)] = 2
    combinations: Annotated[
        str | None,
        option(
            "all, a number, or a slice such as 8:16 of one fixed shuffled order. "
            "Left out: 4 of the embedded testbed, all of ComposLoRA."
        ),
    ] = None
    seeds: Annotated[int, option("Seeds per combination and method.", min=1)] = 1
    controls: Annotated[
        bool,
        option(
            "Beside every method with a cache, the same without at so many steps as cost the same.",
            "--controls/--no-controls",
        ),
    ] = True
    methods: Annotated[
        str,
        option(
            "Separated by commas; options in parentheses: 'merge,cmlora(cache_interval=3)'. "
            "Also no_lora: the prompt alone."
        ),
    ] = "no_lora,merge,switch,composite,cmlora"
    intervals: Annotated[
        str, option("Cache intervals for every method, e.g. 1,2,3,nonuniform.", "--interval")
    ] = ""
    out: Annotated[Path, option("Folder of the run; an unfinished run there goes on.")] = Path(
        "out/eval"
    )
    model: Annotated[str | None, painting("Another checkpoint: directory, file or hub id.")] = None
    vae: Annotated[str | None, painting("Another VAE: directory or hub id.")] = None
    prompt: Annotated[str | None, painting("What every prompt starts with.")] = None
    negative: Annotated[str | None, painting("What to avoid.")] = None
    scorers: Annotated[
        str | None,
        scoring(
            "Of embedded, clip, dino, reward, fidelity (PSNR and SSIM against the uncached image) "
            "and lpips. Left out: embedded, on the embedded testbed."
        ),
    ] = None
    dino_model: Annotated[str, scoring("Folder or hub id.")] = Scored.dino_model
    judge_url: Annotated[
        str | None,
        scoring(
            "OpenAI-compatible endpoint of a vision language model, e.g. http://localhost:8000/v1: "
            "compares the first method with each other one, in both orders."
        ),
    ] = None
    judge_model: Annotated[str | None, scoring("Its name there.")] = None
    judge_rubric: Annotated[str, scoring("two (composition, quality) or four axes.")] = "two"
    judge_prices: Annotated[str, scoring("Of a million tokens of question and answer.")] = "0,0"
    judge_key_env: Annotated[str, scoring("Environment variable that holds the key.")] = (
        "OPENAI_API_KEY"
    )
    tie: Annotated[float, scoring("Scores no further apart are tied.", min=0, callback=finite)] = (
        0.0
    )
    by_combination: Annotated[
        bool, scoring("Resample whole combinations for the intervals.", "--by-combination")
    ] = False
