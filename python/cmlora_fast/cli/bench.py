"""``cmlora bench``: what the ops, the pipelines and a whole machine reach, by measurement."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure speed on this machine, beside what a user would run without us.",
    epilog="Example: cmlora bench kernels --quick",
    no_args_is_help=True,
)


class Op(str, Enum):
    attention = "attention"
    geglu = "geglu"
    lora_delta_ = "lora_delta_"
    lora_fold = "lora_fold"
    radial_amplitude = "radial_amplitude"
    cache_refresh_ = "cache_refresh_"
    combine_ = "combine_"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@bench.command(epilog="Example: cmlora bench kernels --op lora_delta_ --dtype bfloat16 --json")
def kernels(
    op: Annotated[list[Op] | None, typer.Option(help="Measure this op; may be repeated.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Element type.")] = Dtype.float32,
    isa: Annotated[str | None, typer.Option(help="Instruction set; default: the fastest.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Per case and function.")] = 0.2,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and ranks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the document there.")] = None,
) -> None:
    """Time every op against its torch twin, unfused torch, PEFT's layer and numpy."""
    from .bench_kernels import run, show
    from .quiet import quiet
    from .report import print_json

    chosen = [item.value for item in op or Op]
    with quiet():
        report = run(chosen, dtype.value, isa, seconds, quick, out)
    if as_json:
        print_json(report)
    else:
        show(report)
