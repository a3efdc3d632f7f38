"""The released CMLoRA loops with their defects, as a schedule (cmlora spec §1.3, §1.5, §1.7)."""

from __future__ import annotations

from ..methods import CMLoRA
from .refresh import refresh_steps, reuses
from .stepplan import Choice, Measure, Plan, StepPlan, last_only, singles

__all__ = ["plan_released"]

# The released code knows adapters by these ids and drops every other one (cmlora spec §1.3).
RELEASED_HIGH = (
    "style_1",
    "style_2",
    "character_1",
    "character_2",
    "character_3",
    "clothing_1",
    "clothing_2",
    "object_1",
    "object_2",
)
RELEASED_LOW = ("background_1", "background_2")
RELEASED_LAST_EARLY_STEP = 120
RELEASED_CHANGES = frozenset(range(20, 201, 20))
RELEASED_CUTOFF = 80.0  # a literal bin number; no such bin exists below 912 x 912 pixels


def plan_released(method: CMLoRA, adapters: list[str], T: int, guided: bool) -> Plan:
    """The released composite loop; arguments as in ``schedule.plan``."""
    order, R, staged = _released_order(method, adapters)
    schedule, reuse, N, turn = refresh_steps(method, T), reuses(method), len(order), 0
    led, other = _released_weights(len(adapters), N)
    steps = []
    for i in range(T):
        if method.variant == "async":
            refresh = turn % N if i in schedule else None
            turn += i in RELEASED_CHANGES
            leaders = ((turn - 1) % N,)
        else:
            refresh = turn % R if i in schedule else None
            turn += i in schedule
            leaders = ((turn - 1) % R, (turn - 1) % R + 1)
        choices = []
        for late, leader in enumerate(leaders):  # a late refresh is a no-op in the released code
            drops = tuple(not reuse or i == 0 or (j == refresh and not late) for j in range(N))
            weights = tuple(led if j == leader else other for j in range(N))
            name = order[leader] if leader < N else None
            choices.append(Choice(name, drops, weights if guided else last_only(N)))
        steps.append(_released_step(method.variant, i, choices, staged))
    measure = _released_measure(method.threshold, T) if method.variant == "online" else None
    return Plan(singles(order), tuple(steps), reuse, measure)


def _released_order(method: CMLoRA, adapters: list[str]) -> tuple[list[str], int, bool]:
    """H + L, the length of H, and whether the stage can change (L is not empty)."""
    if method.low_frequency is None:
        high = [name for name in adapters if name in RELEASED_HIGH]
        low = [name for name in adapters if name in RELEASED_LOW]
    else:
        high = [name for name in adapters if name not in method.low_frequency]
        low = [name for name in adapters if name in method.low_frequency]
    if not high and (method.variant != "async" or not low):
        raise ValueError(
            "CMLoRA.reference_compat: expected at least one high-frequency adapter (by the "
            f"released id table, or outside low_frequency); got adapters {adapters!r}"
        )
    return high + low, len(high), bool(low)


def _released_weights(asked: int, N: int) -> tuple[float, float]:
    """Shares of the leader and of each other; N adapters of those asked for are known."""
    coeff = asked - 0.5
    other = asked / (coeff + asked - 1) / N
    return coeff * other, other


def _released_measure(threshold: float, T: int) -> Measure:
    return Measure(
        threshold=threshold,
        cutoff=RELEASED_CUTOFF,
        log=False,
        latch=False,
        early_steps=T,
        first_image_only=True,
        nan_is_late=True,
    )


def _released_step(variant: str, i: int, choices: list[Choice], staged: bool) -> StepPlan:
    groups = tuple(range(len(choices[0].weights)))
    if variant == "async":
        return StepPlan(groups, choices[0])
    if not staged:
        return StepPlan(groups, choices[0], stage=True)
    if variant == "online":
        return StepPlan(groups, choices[0], choices[1], decides=True)
    early = i <= RELEASED_LAST_EARLY_STEP
    return StepPlan(groups, choices[0 if early else 1], stage=early)
