"""The options of ``cmlora bench pipeline`` and ``throughput``, and how lists in them are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from ..errors import CliError
from ..options import option

__all__ = [
    "Device",
    "Dtype",
    "Method",
    "PipelineRequest",
    "Size",
    "ThroughputRequest",
    "limits",
    "names",
    "numbers",
]

CHANNELS = {
    "half": (160, 320, 640, 640),  # of each block; "full" is Stable Diffusion 1.5 itself
    "full": (320, 640, 1280, 1280),
    "tiny": (32, 32, 64, 64),
}
Channels = Enum("Channels", {name: name for name in CHANNELS}, type=str)


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Method(str, Enum):
    all = "all"
    clora = "clora"


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True)
class Size:
    """A UNet of SD 1.5's topology by its name in CHANNELS, the latents' sides, the steps."""

    name: str
    latents: int
    steps: int

    @property
    def given(self) -> dict[str, Any]:
        """As the benchmarks take it."""
        return {"channels": CHANNELS[self.name], "latents": self.latents, "steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What both verbs have."""

    channels: Annotated[Channels, option("Channels of the UNet: half of SD 1.5's, or all.")] = (
        Channels.half
    )
    latents: Annotated[int, option("Sides of the latents.", min=8)] = 32
    steps: Annotated[int, option("Denoising steps.", min=2)] = 10
    quick: Annotated[bool, option("A tiny UNet, four steps, few images.", "--quick")] = False
    out: Annotated[
        Path | None, option("Folder for the document and pictures; parts of a run add up.")
    ] = None

    @property
    def size(self) -> Size:
        if self.quick:
            return Size("tiny", 16, 4)
        return Size(self.channels.value, self.latents, self.steps)


@dataclass(frozen=True, kw_only=True)
class PipelineRequest(_Measured):
    """The options of ``cmlora bench pipeline``."""

    adapters: Annotated[
        str | None, option("Numbers of adapters; default: 1,2,3,5 (1,2 with --quick).")
    ] = None
    images: Annotated[int, option("Timed images of every contender, in turns.", min=1)] = 2
    contenders: Annotated[
        str | None, option("Names from the table, separated by commas; default: all.")
    ] = None
    threads: Annotated[int | None, option("Threads; default: torch's choice.", min=1)] = None
    method: Annotated[Method, option("clora: that method alone, against its own loop.")] = (
        Method.all
    )
    profile: Annotated[
        bool, option("Instead: where the seconds of our images go.", "--profile")
    ] = False
    fixed: Annotated[
        bool, option("Instead: what an image costs beside its steps, SDXL's layers.", "--fixed")
    ] = False

    def __post_init__(self) -> None:
        if self.method is Method.clora and (self.profile or self.fixed or self.contenders):
            raise CliError(
                "--method clora: is timed beside its own loop; no --profile, --fixed, --contenders"
            )
        if self.fixed and (self.profile or self.contenders):
            raise CliError("--fixed: measures by itself; no --profile, --contenders")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of adapters."""
        return numbers("--adapters", self.adapters or ("1,2" if self.quick else "1,2,3,5"))

    @property
    def fixed_run(self) -> dict[str, Any]:
        """What ``--fixed`` runs: images of two numbers of steps, as often as ``--images`` says."""
        images = 1 if self.quick else self.images
        steps = (2, 4) if self.quick else (4, 8)
        return {"adapters": max(self.counts), "steps": steps, "rounds": images}


@dataclass(frozen=True, kw_only=True)
class ThroughputRequest(_Measured):
    """The options of ``cmlora bench throughput``."""

    images: Annotated[str, option("Images per call.")] = "1,2,4,8"
    adapters: Annotated[str, option("Numbers of adapters.")] = "3"
    methods: Annotated[str, option("Of lossless, merge, switch, composite, cmlora.")] = (
        "lossless,composite,cmlora"
    )
    weights: Annotated[str, option("Of auto, fold, delta.")] = "auto"
    max_rows: Annotated[str, option("Samples per UNet batch; all: no limit.")] = "all"
    threads: Annotated[str, option("Numbers of threads; all: torch's choice.")] = "all"
    rounds: Annotated[int, option("Timed calls of every combination.", min=1)] = 2
    device: Annotated[Device, option("Where it runs.")] = Device.cpu
    dtype: Annotated[Dtype, option("Element type.")] = Dtype.float32


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Positive numbers separated by commas."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise CliError(f"{option}: expected numbers >= 1 separated by commas; got {text!r}")
    return tuple(map(int, words))


def limits(option: str, text: str) -> tuple[int | None, ...]:
    """As ``numbers``; "all" is None."""
    return tuple(None if w == "all" else numbers(option, w)[0] for w in text.split(","))


def names(option: str, text: str | None, allowed: Collection[str]) -> tuple[str, ...]:
    """Names separated by commas, in the order of ``allowed``; None is all of them."""
    asked = set(allowed) if text is None else set(text.split(","))
    if unknown := asked - set(allowed):
        known = ", ".join(allowed)
        raise CliError(f"{option}: expected names of {known}; got {', '.join(sorted(unknown))}")
    return tuple(name for name in allowed if name in asked)
