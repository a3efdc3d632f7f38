"""``cmlora bench``: what the ops, the pipelines and a whole machine reach, by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmlora_fast.report import print_json

from ..options import AsJson, expanded
from ..quiet import quiet
from .options import (
    Dtype,
    Method,
    PipelineRequest,
    ThroughputRequest,
    limits,
    names,
    numbers,
)

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure speed on this machine, beside what a user would run without us.",
    epilog="Example: cmlora bench kernels --quick",
    no_args_is_help=True,
)


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
    from .kernels import run, show

    with quiet():
        from ...benchmarks.ops.kernel_cases import MEASURED

        chosen = op or MEASURED
        names("--op", ",".join(chosen), MEASURED)
        report = run(chosen, dtype.value, isa, seconds, quick, out)
    (print_json if as_json else show)(report)


PROFILED = ("lossless", "composite", "cmlora")


@bench.command(
    epilog="Example: cmlora bench pipeline --adapters 5 --contenders peft,composite_loop,cmlora"
)
@expanded
def pipeline(request: PipelineRequest, as_json: AsJson = False) -> None:
    """Time images by diffusers + PEFT, plain loops, DeepCache and cmlora_fast, in turns."""
    from . import fixed, losses
    from . import pipeline as verb

    size, counts, out = request.size, request.counts, request.out
    images = 1 if request.quick else request.images
    show = verb.show
    with quiet():
        import torch

        from ...benchmarks.engine.contenders import CONTENDERS

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        chosen = names("--contenders", request.contenders, CONTENDERS)
        if request.method is Method.clora:
            report, show = verb.run_clora(size, counts, images, out), verb.show_clora
        elif request.fixed:
            report, show = fixed.run(request.fixed_run, out), fixed.show
        elif request.profile:
            profiled = chosen if request.contenders else PROFILED
            report, show = losses.run(size, max(counts), profiled, out), losses.show
        else:
            report = verb.run(size, counts, images, chosen, out)
    (print_json if as_json else show)(report)


@bench.command(
    epilog="Example: cmlora bench throughput --images 1,4 --methods cmlora --max-rows all,8"
)
@expanded
def throughput(request: ThroughputRequest, as_json: AsJson = False) -> None:
    """Measure images per second, latency and memory for every combination of these knobs."""
    from . import throughput as verb

    with quiet():
        from ...benchmarks.engine.throughput import METHODS, combinations

        settings = combinations(
            numbers("--adapters", request.adapters),
            names("--methods", request.methods, METHODS),
            names("--weights", request.weights, ("auto", "fold", "delta")),
            limits("--max-rows", request.max_rows),
            limits("--threads", request.threads),
            numbers("--images", "1,2" if request.quick else request.images),
        )
        report = verb.run(settings, request)
    (print_json if as_json else verb.show)(report)
