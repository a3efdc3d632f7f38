"""The application: its verbs, the global options, and how errors end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from cmlora_fast.report import printable, version_of

from .analyze import analyze
from .bench import bench
from .demo import demo
from .doctor import doctor
from .errors import one_line
from .eval import evaluate
from .generate import generate
from .grid import grid
from .lora_inspect import inspect_lora

__all__ = ["app", "main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
# Some versions of typer bring their own click: the base of its errors is found through typer.
ClickError = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="cmlora",
    help="Compose several LoRAs on diffusers UNet pipelines, fast and dependably.",
    epilog="Example: cmlora demo --out out",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
lora = typer.Typer(
    help="Look into LoRA files.",
    epilog="Example: cmlora lora inspect character.safetensors",
    no_args_is_help=True,
)


@dataclass
class Options:
    """The options that stand before the verb."""

    debug: bool = False


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cmlora-fast {version_of('cmlora-fast')}")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_version, help="Print the version and exit."
    ),
) -> None:
    """Compose several LoRAs on diffusers UNet pipelines, fast and dependably."""
    if isinstance(context.obj, Options):
        context.obj.debug = debug


app.command(epilog="Example: cmlora demo --out out --seed 0")(demo)
app.command(
    epilog='Example: cmlora generate --model path/or/hub-id -p "a knight in a forest" '
    "--lora knight.safetensors:0.8 --lora forest.safetensors --method cmlora --out knight.png"
)(generate)
app.command(
    "eval",
    epilog="Example: cmlora eval --testbed embedded --compose 3 --seeds 8 "
    "--methods merge,switch,composite,cmlora",
)(evaluate)
app.command(
    epilog="Example: cmlora grid --lora character_1 --lora style_1 --weight 0.8,1 --interval 1,3"
)(grid)
app.command(
    epilog="Example: cmlora analyze --lora character_1 --lora clothing_2 --lora background_1"
)(analyze)
app.command(epilog="Example: cmlora doctor --json")(doctor)
lora.command(
    "inspect", epilog="Example: cmlora lora inspect character.safetensors --model path/to/model"
)(inspect_lora)
app.add_typer(lora, name="lora")
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cmlora`` and return its exit code."""
    options = Options()
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="cmlora",
            standalone_mode=False,
            obj=options,
        )
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except ClickError as error:
        return _fail(error.format_message(), error.exit_code)
    except Exception as error:
        if options.debug:
            raise
        return _fail(one_line(error), 1)
    if code == INTERRUPTED:  # what newer versions of typer make of Ctrl-C
        return _interrupted()
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    if message:  # empty: typer has printed the help already
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED
