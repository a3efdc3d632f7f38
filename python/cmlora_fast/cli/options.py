"""How options are declared, and those of every verb that paints what the user brings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from .errors import CliError

__all__ = [
    "LARGEST_SEED",
    "AsJson",
    "Painting",
    "expanded",
    "finite",
    "guidance_option",
    "option",
    "painting",
    "steps_option",
    "words",
]

MULTIPLE = 8  # of height and width, in pixels
LARGEST_SEED = 2**63 - 1  # that torch takes
Self = TypeVar("Self", bound="Painting")


def words(text: str) -> list[str]:
    """What commas separate."""
    return [word.strip() for word in text.split(",") if word.strip()]


def finite(value: float | None) -> float | None:
    """Neither NaN nor infinity is meant by anyone."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number; got {value}")
    return value


def option(help: str, *names: str, **limits: Any) -> Any:
    """An option with its help first; what typer takes besides goes through."""
    return typer.Option(*names, help=help, **limits)


def painting(help: str, *names: str, **limits: Any) -> Any:
    return option(help, *names, rich_help_panel="Painting", **limits)


def steps_option(*names: str) -> Any:
    return painting("Denoising steps; 20, or ComposLoRA's.", "--steps", *names, min=1)


def guidance_option(*names: str) -> Any:
    help = "Up to 1: none. Left out: 7.5, or ComposLoRA's."
    return painting(help, "--guidance-scale", *names, callback=finite)


Pixels = Annotated[
    int | None, painting("Pixels; left out: the model's or ComposLoRA's.", min=MULTIPLE)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, kw_only=True)
class Painting:
    """None where the preset decides."""

    seed: Annotated[int, painting("The first seed; the next adds 1.", min=0, max=LARGEST_SEED)] = 0
    steps: Annotated[int | None, steps_option()] = None
    guidance_scale: Annotated[float | None, guidance_option()] = None
    height: Pixels = None
    width: Pixels = None
    scheduler: Annotated[
        str | None,
        painting(
            "ddim, pndm, euler, euler-a, heun, dpm++, dpm++-karras, unipc or lcm; "
            "left out: the model's own."
        ),
    ] = None
    dtype: Annotated[str, painting("auto, float32, float16 or bfloat16.")] = "auto"
    device: Annotated[str, painting("auto, cpu, cuda or cuda:N.")] = "auto"
    weights: Annotated[str, painting("Of adapted layers: auto, fold or delta.")] = "auto"
    backend: Annotated[str, painting("Of the ops: auto, cpu, cuda, triton or torch.")] = "auto"
    max_rows: Annotated[
        int | None, painting("Most samples per UNet batch; bounds the memory.", min=1)
    ] = None

    def __post_init__(self) -> None:
        """Refuse sizes that no UNet takes, before anything is loaded."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value % MULTIPLE:
                raise CliError(f"--{name}: expected a multiple of {MULTIPLE}; got {value}")

    @property
    def engine(self) -> dict[str, Any]:
        """What ``cf.enable`` takes."""
        return {"backend": self.backend, "weights": self.weights, "max_rows": self.max_rows}

    def filled(self: Self, preset: Any) -> Self:
        """With the preset's values where options were left out."""
        left_out = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(preset, name, None) for name in left_out})


def expanded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: the fields of its dataclass ``request`` as its parameters."""
    hints = get_type_hints(verb, include_extras=True)
    cls = hints["request"]
    types = get_type_hints(cls, include_extras=True)
    defaults = {
        f.name: inspect.Parameter.empty if f.default is MISSING else f.default for f in fields(cls)
    }
    own = [p for p in inspect.signature(verb).parameters.values() if p.name != "request"]
    types |= {p.name: hints[p.name] for p in own}
    defaults |= {p.name: p.default for p in own}

    @wraps(verb)
    def run(**given: Any) -> None:
        rest = {p.name: given.pop(p.name) for p in own}
        verb(cls(**given), **rest)

    kind = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature(
        [inspect.Parameter(n, kind, default=d, annotation=types[n]) for n, d in defaults.items()]
    )
    run.__annotations__ = {name: types[name] for name in defaults}
    return run
