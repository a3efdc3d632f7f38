"""``--scorers`` and ``--judge-…``: names to scorers, checked before the first image."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from cmlora_fast.eval import scorers
from cmlora_fast.eval.endpoint import Endpoint
from cmlora_fast.eval.judge import RUBRICS, Judge

from .errors import CliError
from .pipelines import pick_device
from .requests import EvalRequest, Scored

__all__ = ["make_judge", "make_scorers"]

NAMES: dict[str, Callable[[Scored, str | None, str], Any]] = {
    "embedded": lambda request, style, device: scorers.EmbeddedScorer(style),
    "clip": lambda request, style, device: scorers.ClipScorer(request.clip_model, device),
    "dino": lambda request, style, device: scorers.DinoScorer(request.dino_model, device),
    "reward": lambda request, style, device: scorers.RewardScorer(request.reward_model, device),
    "fidelity": lambda request, style, device: scorers.FidelityScorer(),
    "lpips": lambda request, style, device: scorers.LpipsScorer(device),
}


def make_scorers(names: Sequence[str], request: Scored, style: str | None) -> list[Any]:
    """The scorers of these names, ready to score; ``style``: of the embedded LoRAs, if they are."""
    for name in names:
        if name not in NAMES:
            raise CliError(f"--scorers: expected some of {', '.join(NAMES)}; got {name!r}")
    if "embedded" in names and style is None:
        raise CliError("--scorers embedded: knows the concepts of --testbed embedded only")
    device = pick_device(request.device)
    made = [NAMES[name](request, style, device) for name in dict.fromkeys(names)]
    for scorer in made:
        scorer.check()
    return made


def make_judge(request: EvalRequest, methods: int) -> Judge | None:
    """The judge behind ``--judge-url``, reachable; None if none was asked for."""
    url, model = request.judge_url, request.judge_model
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise CliError(f"--judge-url: expected http://… or https://…; got {url!r}")
    if not model:
        raise CliError("--judge-model: expected the model's name at --judge-url")
    if request.judge_rubric not in RUBRICS:
        raise CliError(
            f"--judge-rubric: expected one of {', '.join(RUBRICS)}; got {request.judge_rubric!r}"
        )
    if methods < 2:
        raise CliError("--judge-url: a judge compares; expected at least two methods")
    try:
        question, answer = map(float, request.judge_prices.split(","))
    except ValueError:
        raise CliError(
            f"--judge-prices: expected two numbers such as 2.5,10; got {request.judge_prices!r}"
        ) from None
    key = os.environ.get(request.judge_key_env, "")
    judge = Judge(Endpoint(url, model, key), request.judge_rubric, (question, answer))
    judge.endpoint.check()
    return judge
