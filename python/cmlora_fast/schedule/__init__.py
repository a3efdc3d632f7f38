"""Schedules as data: for each step who leads, whose deep part runs, with which weights.

Pure Python: nothing here imports torch, diffusers or numpy.
"""

from .corrected import follows_steps, partition, plan, text_adapters
from .forecast import FEWEST_STEPS, real_steps
from .refresh import refresh_steps, reuses
from .stepplan import Choice, Measure, Plan, StepPlan, Walk

__all__ = [
    "FEWEST_STEPS",
    "Choice",
    "Measure",
    "Plan",
    "StepPlan",
    "Walk",
    "follows_steps",
    "partition",
    "plan",
    "real_steps",
    "refresh_steps",
    "reuses",
    "text_adapters",
]
