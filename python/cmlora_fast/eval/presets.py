"""ComposLoRA's settings by image style, and the prompts that a copy of it holds."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from ..testbed import GUIDANCE

__all__ = ["PRESETS", "Preset", "plain_preset", "read_prompts"]

STEPS = 20


@dataclass(frozen=True)
class Preset:
    """What a run paints with unless it is told other; None: the model's own."""

    model: str
    vae: str | None
    steps: int
    guidance_scale: float
    height: int | None
    width: int | None
    scheduler: str | None = "dpm++"
    lora_scale: float = 0.8


# How Zhong et al. 2024 paint each image style (cmlora spec §1.1, §5.1).
PRESETS = {
    "anime": Preset("gsdf/Counterfeit-V2.5", None, 200, 10.0, 512, 512),
    "reality": Preset(
        "SG161222/Realistic_Vision_V5.1_noVAE", "stabilityai/sd-vae-ft-mse", 100, 7.0, 1024, 768
    ),
}


def plain_preset(model: str) -> Preset:
    """Where no testbed has settings of its own."""
    return Preset(model, None, STEPS, GUIDANCE, None, None, scheduler=None, lora_scale=1.0)


def read_prompts(path: Path, style: str) -> tuple[str, str]:
    """(base prompt, negative prompt) of a style, read from the testbed's code, never run.

    The code is a function ``get_prompt`` that tests its argument against the name of a style and
    assigns the literals ``prompt`` and ``negative_prompt`` in each branch; the last branch is for
    every other style.

    Raises:
        ValueError: No such file or no such function.
    """
    give = "give the base prompt and the negative prompt instead"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: no prompts to read ({error}); {give}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "get_prompt":
            literals = _literals(_branch(node.body, style))
            if {"prompt", "negative_prompt"} <= literals.keys():
                return literals["prompt"], literals["negative_prompt"]
    raise ValueError(f"{path}: no get_prompt with the prompts of {style!r} in it; {give}")


def _branch(body: list[ast.stmt], style: str) -> list[ast.stmt]:
    """The statements that run for this style: those outside of any ``if``, and one branch."""
    taken: list[ast.stmt] = []
    for statement in body:
        if not isinstance(statement, ast.If):
            taken.append(statement)
            continue
        literals = [n.value for n in ast.walk(statement.test) if isinstance(n, ast.Constant)]
        taken += _branch(statement.body if style in literals else statement.orelse, style)
    return taken


def _literals(body: list[ast.stmt]) -> dict[str, str]:
    return {
        target.id: statement.value.value
        for statement in body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
