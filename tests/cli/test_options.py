"""A verb gets its options in one frozen piece; typer sees each of them."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, asdict, dataclass
from typing import Annotated

import pytest
import typer
from cmlora_fast.cli.errors import CliError
from cmlora_fast.cli.options import AsJson, Painting, expanded, option
from cmlora_fast.cli.requests import EvalRequest, GenerateRequest
from cmlora_fast.eval.presets import PRESETS
from typer.testing import CliRunner


@dataclass(frozen=True, kw_only=True)
class Request(Painting):
    name: Annotated[str, option("Required, behind options that are not.")]


@expanded
def verb(request: Request, as_json: AsJson = False) -> None:
    """What it does."""
    typer.echo(f"{request.name} {request.steps} {request.max_rows} {as_json}")


def test_a_verb_gets_its_request():
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, ["--name", "fox", "--steps", "3", "--json"])
    assert result.exit_code == 0 and result.output == "fox 3 None True\n"
    assert CliRunner().invoke(app, ["--steps", "3"]).exit_code == 2
    assert "What it does." in CliRunner().invoke(app, ["--help"]).output
    assert list(inspect.signature(verb).parameters) == [*asdict(Request(name="x")), "as_json"]


def test_a_request_is_checked_when_made_and_never_changed():
    with pytest.raises(CliError, match="--width: expected a multiple of 8; got 12"):
        EvalRequest(width=12)
    with pytest.raises(FrozenInstanceError):
        EvalRequest().steps = 3


def test_a_preset_fills_what_was_left_out():
    filled = EvalRequest(steps=7, model="mine").filled(PRESETS["reality"])
    assert (filled.steps, filled.model, filled.height, filled.lora_scale) == (7, "mine", 1024, 0.8)
    assert filled.vae == PRESETS["reality"].vae and filled.prompt is None


def test_the_same_options_have_the_same_defaults():
    shared = asdict(Painting())
    for request in (GenerateRequest(prompt="x"), EvalRequest()):
        assert shared.items() <= asdict(request).items()
