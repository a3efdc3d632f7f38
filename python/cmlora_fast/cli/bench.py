"""``cmlora bench``: what the ops, the pipelines and a whole machine reach, by measurement."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .errors import CliError
from .painting_options import AsJson

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure speed on this machine, beside what a user would run without us.",
    epilog="Example: cmlora bench kernels --quick",
    no_args_is_help=True,
)


class Channels(str, Enum):
    half = "half"
    full = "full"
    tiny = "tiny"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@bench.command(epilog="Example: cmlora bench kernels --op lora_delta_ --dtype bfloat16 --json")
def kernels(
    op: Annotated[list[str] | None, typer.Option(help="Measure this op; may be repeated.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Element type.")] = Dtype.float32,
    isa: Annotated[str | None, typer.Option(help="Instruction set; default: the fastest.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Per case and function.")] = 0.2,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and ranks.")] = False,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the document; parts of a run add up.")
    ] = None,
) -> None:
    """Time every op against its torch twin, unfused torch, PEFT's layer and numpy."""
    from .bench_kernels import run, show
    from .quiet import quiet
    from .report import print_json

    with quiet():
        from ..benchmarks.kernel_cases import MEASURED

        chosen = op or MEASURED
        names("--op", ",".join(chosen), MEASURED)
        report = run(chosen, dtype.value, isa, seconds, quick, out)
    if as_json:
        print_json(report)
    else:
        show(report)


PROFILED = ("lossless", "composite", "cmlora")


class Measured(str, Enum):
    all = "all"
    clora = "clora"


Out = Annotated[
    Path | None, typer.Option(help="Folder for the document and pictures; parts of a run add up.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's choice.")]
Sizes = Annotated[Channels, typer.Option(help="Channels of the UNet: half of SD 1.5's, or all.")]


@bench.command(
    epilog="Example: cmlora bench pipeline --adapters 5 --contenders peft,composite_loop,cmlora"
)
def pipeline(
    adapters: Annotated[
        str | None, typer.Option(help="Numbers of adapters; default: 1,2,3,5 (1,2 with --quick).")
    ] = None,
    channels: Sizes = Channels.half,
    latents: Annotated[int, typer.Option(min=8, help="Sides of the latents.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 10,
    images: Annotated[
        int, typer.Option(min=1, help="Timed images of every contender, in turns.")
    ] = 2,
    contenders: Annotated[
        str | None, typer.Option(help="Names from the table, separated by commas; default: all.")
    ] = None,
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny UNet, four steps.")] = False,
    method: Annotated[
        Measured, typer.Option(help="clora: that method alone, against its own loop.")
    ] = Measured.all,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead: where the seconds of our images go.")
    ] = False,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time images by diffusers + PEFT, plain loops, DeepCache and cmlora_fast, in turns."""
    from . import bench_losses
    from . import bench_pipeline as verb
    from .quiet import quiet
    from .report import print_json

    if method is Measured.clora and (profile or contenders):
        raise CliError("--method clora: is timed beside its own loop; no --profile, --contenders")
    counts = numbers("--adapters", adapters or ("1,2" if quick else "1,2,3,5"))
    if quick:
        channels, latents, steps, images = Channels.tiny, 16, 4, 1
    with quiet():
        from ..benchmarks.contenders import CONTENDERS

        use_threads(threads)
        chosen = names("--contenders", contenders, CONTENDERS)
        if method is Measured.clora:
            report = verb.run_clora(channels.value, latents, steps, counts, images, out)
        elif profile:
            verb, given = bench_losses, (channels.value, latents, steps, max(counts))
            report = verb.run(*given, chosen if contenders else PROFILED, out)
        else:
            report = verb.run(channels.value, latents, steps, counts, images, chosen, out)
    if as_json:
        print_json(report)
    else:
        (verb.show_clora if method is Measured.clora else verb.show)(report)


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


@bench.command(
    epilog="Example: cmlora bench throughput --images 1,4 --methods cmlora --max-rows all,8"
)
def throughput(
    images: Annotated[str, typer.Option(help="Images per call.")] = "1,2,4,8",
    adapters: Annotated[str, typer.Option(help="Numbers of adapters.")] = "3",
    methods: Annotated[
        str, typer.Option(help="Of lossless, merge, switch, composite, cmlora.")
    ] = "lossless,composite,cmlora",
    weights: Annotated[str, typer.Option(help="Of auto, fold, delta.")] = "auto",
    max_rows: Annotated[str, typer.Option(help="Samples per UNet batch; all: no limit.")] = "all",
    threads: Annotated[str, typer.Option(help="Numbers of threads; all: torch's choice.")] = "all",
    channels: Sizes = Channels.half,
    latents: Annotated[int, typer.Option(min=8, help="Sides of the latents.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of every combination.")] = 2,
    device: Annotated[Device, typer.Option(help="Where it runs.")] = Device.cpu,
    dtype: Annotated[Dtype, typer.Option(help="Element type.")] = Dtype.float32,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny UNet, 1 and 2 images.")] = False,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Measure images per second, latency and memory for every combination of these knobs."""
    from . import bench_throughput as verb
    from .quiet import quiet
    from .report import print_json

    if quick:
        channels, latents, steps, images, rounds = Channels.tiny, 16, 4, "1,2", 1
    with quiet():
        from ..benchmarks.throughput import METHODS, combinations

        settings = combinations(
            numbers("--adapters", adapters),
            names("--methods", methods, METHODS),
            names("--weights", weights, ("auto", "fold", "delta")),
            limits("--max-rows", max_rows),
            limits("--threads", threads),
            numbers("--images", images),
        )
        report = verb.run(
            settings, channels.value, latents, steps, rounds, device.value, dtype.value, out
        )
    if as_json:
        print_json(report)
    else:
        verb.show(report)


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


def use_threads(count: int | None) -> None:
    import torch

    if count is not None:
        torch.set_num_threads(count)
