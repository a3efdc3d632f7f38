"""What is set on other people's objects, and what others have set on them."""

from .foreign import foreign_code, hears_everything, is_heard, keeps_features, runs_as_peft_left_it
from .patches import Hook, Patches, frozen, runs_own_forward

__all__ = [
    "Hook",
    "Patches",
    "foreign_code",
    "frozen",
    "hears_everything",
    "is_heard",
    "keeps_features",
    "runs_as_peft_left_it",
    "runs_own_forward",
]
