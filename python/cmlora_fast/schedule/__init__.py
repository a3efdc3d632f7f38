"""Schedules as data: for each step who leads, whose deep part runs, with which weights.

Pure Python: nothing here imports torch, diffusers or numpy.
"""

from .corrected import follows_steps, partition, plan, text_adapters
from .fades import Fade, Stretch, fade_of, stretches
from .forecast import FEWEST_STEPS, real_steps
from .refresh import refresh_steps, reuses
from .stepplan import Choice, Measure, Plan, StepPlan, Walk

__all__ = [
    "FEWEST_STEPS",
    "Choice",
    "Fade",
    "Measure",
    "Plan",
    "StepPlan",
    "Stretch",
    "Walk",
    "fade_of",
    "follows_steps",
    "partition",
    "plan",
    "real_steps",
    "refresh_steps",
    "reuses",
    "stretches",
    "text_adapters",
]
