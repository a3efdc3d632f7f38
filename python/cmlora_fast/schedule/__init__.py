"""Schedules as data: for each step who leads, whose deep part runs, with which weights.

Pure Python: nothing here imports torch, diffusers or numpy.
"""

from .corrected import follows_steps, partition, plan, text_adapters
from .refresh import refresh_steps, reuses
from .stepplan import Choice, Measure, Plan, StepPlan, Walk

__all__ = [
    "Choice",
    "Measure",
    "Plan",
    "StepPlan",
    "Walk",
    "follows_steps",
    "partition",
    "plan",
    "refresh_steps",
    "reuses",
    "text_adapters",
]
