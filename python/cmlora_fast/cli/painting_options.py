"""How options are written, and those on painting that ``eval``, ``grid`` and ``analyze`` share."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from .errors import CliError

__all__ = [
    "LARGEST_SEED",
    "MULTIPLE",
    "AsJson",
    "Backend",
    "ClipSkip",
    "Device",
    "Dtype",
    "Eta",
    "GuidanceRescale",
    "GuidanceScale",
    "LoraScale",
    "MaxRows",
    "Pixels",
    "Scheduler",
    "Seed",
    "Steps",
    "Weights",
    "check_size",
    "finite",
    "option",
    "painting",
]

MULTIPLE = 8  # of height and width, in pixels
LARGEST_SEED = 2**63 - 1  # that torch takes


def finite(value: float | None) -> float | None:
    """Of an option: a number, as neither NaN nor infinity is meant by anyone."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number; got {value}")
    return value


def option(help: str, *names: str, **limits: Any) -> Any:
    """An option with its help first; what typer takes besides goes through."""
    return typer.Option(*names, help=help, **limits)


def painting(help: str, *names: str, **limits: Any) -> Any:
    return option(help, *names, rich_help_panel="Painting", **limits)


Steps = Annotated[int | None, painting("Denoising steps.", "--steps", "--denoise-steps", min=1)]
GuidanceScale = Annotated[
    float | None,
    painting("Up to 1: none.", "--guidance-scale", "--cfg-scale", callback=finite),
]
Pixels = Annotated[int | None, painting("Pixels.", min=MULTIPLE)]
Scheduler = Annotated[str | None, painting("As in cmlora generate.")]
LoraScale = Annotated[float | None, painting("Multiplies every LoRA.", callback=finite)]
GuidanceRescale = Annotated[float, painting("Of the guided prediction.", min=0, callback=finite)]
ClipSkip = Annotated[int | None, painting("Last text layers to leave out.", min=1)]
Eta = Annotated[float, painting("Of DDIM.", min=0, callback=finite)]
Dtype = Annotated[str, painting("auto, float32, float16 or bfloat16.")]
Device = Annotated[str, painting("auto, cpu, cuda or cuda:N.")]
Weights = Annotated[str, painting("Of adapted layers: auto, fold or delta.")]
Backend = Annotated[str, painting("Of the ops: auto, cpu, cuda, triton or torch.")]
MaxRows = Annotated[int | None, painting("Most samples per UNet batch.", min=1)]
Seed = Annotated[int, option("The first seed.", min=0, max=LARGEST_SEED)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def check_size(height: int | None, width: int | None) -> None:
    """Refuse sizes that no UNet takes, before anything is loaded."""
    for name, value in (("--height", height), ("--width", width)):
        if value is not None and value % MULTIPLE:
            raise CliError(f"{name}: expected a multiple of {MULTIPLE}; got {value}")
