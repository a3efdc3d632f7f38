"""``--scorers`` and ``--judge-…``: names to scorers, checked before the first image."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cmlora_fast.eval import scorers
from cmlora_fast.eval.endpoint import Endpoint
from cmlora_fast.eval.judge import RUBRICS, Judge

from .errors import CliError
from .pipelines import EMBEDDED, pick_device

__all__ = ["make_judge", "make_scorers"]

NAMES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "embedded": lambda a, device: scorers.EmbeddedScorer(a["style"]),
    "clip": lambda a, device: scorers.ClipScorer(a["clip_model"], device),
    "dino": lambda a, device: scorers.DinoScorer(a["dino_model"], device),
    "reward": lambda a, device: scorers.RewardScorer(a["reward_model"], device),
    "fidelity": lambda a, device: scorers.FidelityScorer(),
    "lpips": lambda a, device: scorers.LpipsScorer(device),
}


def make_scorers(arguments: dict[str, Any]) -> list[Any]:
    """The scorers that ``--scorers`` names, ready to score."""
    text = arguments["scorers"]
    if text is None:
        text = "embedded" if arguments["testbed"] == EMBEDDED else ""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise CliError(f"--scorers: expected some of {', '.join(NAMES)}; got {name!r}")
    if "embedded" in names and arguments["testbed"] != EMBEDDED:
        raise CliError("--scorers embedded: knows the concepts of --testbed embedded only")
    device = pick_device(arguments["device"])
    made = [NAMES[name](arguments, device) for name in dict.fromkeys(names)]
    for scorer in made:
        scorer.check()
    return made


def make_judge(arguments: dict[str, Any], methods: int) -> Judge | None:
    """The judge behind ``--judge-url``, reachable; None if none was asked for."""
    url, model = arguments["judge_url"], arguments["judge_model"]
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise CliError(f"--judge-url: expected http://… or https://…; got {url!r}")
    if not model:
        raise CliError("--judge-model: expected the model's name at --judge-url")
    if arguments["judge_rubric"] not in RUBRICS:
        raise CliError(
            f"--judge-rubric: expected one of {', '.join(RUBRICS)}; "
            f"got {arguments['judge_rubric']!r}"
        )
    if methods < 2:
        raise CliError("--judge-url: a judge compares; expected at least two methods")
    try:
        question, answer = map(float, arguments["judge_prices"].split(","))
    except ValueError:
        raise CliError(
            "--judge-prices: expected two numbers such as 2.5,10; "
            f"got {arguments['judge_prices']!r}"
        ) from None
    key = os.environ.get(arguments["judge_key_env"], "")
    judge = Judge(Endpoint(url, model, key), arguments["judge_rubric"], (question, answer))
    judge.endpoint.check()
    return judge
