"""``--scorers``: names to scorers, checked before the first image."""

from __future__ import annotations

from typing import Any

from .errors import CliError
from .pipelines import EMBEDDED

__all__ = ["make_scorers"]

NAMES = ("embedded",)


def make_scorers(arguments: dict[str, Any]) -> list[Any]:
    """The scorers that ``--scorers`` names, ready to score."""
    text = arguments["scorers"]
    if text is None:
        text = "embedded" if arguments["testbed"] == EMBEDDED else ""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise CliError(f"--scorers: expected some of {', '.join(NAMES)}; got {name!r}")
    made = [_make(name, arguments) for name in names]
    for scorer in made:
        scorer.check()
    return made


def _make(name: str, arguments: dict[str, Any]) -> Any:
    from cmlora_fast.eval.scorers import EmbeddedScorer

    return EmbeddedScorer()
