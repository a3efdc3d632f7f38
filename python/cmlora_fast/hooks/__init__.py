"""What is set on other people's objects, and what others have set on them."""

from .foreign import (
    Foreign,
    foreign_code,
    is_heard,
    keeps_features,
    runs_as_peft_left_it,
)
from .patches import Hook, Patches, frozen, runs_own_forward, sweep

__all__ = [
    "Foreign",
    "Hook",
    "Patches",
    "foreign_code",
    "frozen",
    "is_heard",
    "keeps_features",
    "runs_as_peft_left_it",
    "runs_own_forward",
    "sweep",
]
