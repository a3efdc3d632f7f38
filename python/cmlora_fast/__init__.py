"""Fast, dependable composition of several LoRAs on diffusers UNet pipelines."""

from typing import TYPE_CHECKING, Any

from . import ops
from .engine.summary import StepRecord, Summary
from .methods import (
    CLoRA,
    CMLoRA,
    Composite,
    Concept,
    Merge,
    Row,
    Switch,
    recommended_weights,
)
from .ops.backends import backends

if TYPE_CHECKING:
    from .frontdoor import (
        LoraReport,
        accelerate,
        disable,
        enable,
        load_lora,
        read_lora,
        summary,
    )

__version__ = "0.1.0"

__all__ = [
    "CLoRA",
    "CMLoRA",
    "Composite",
    "Concept",
    "LoraReport",
    "Merge",
    "Row",
    "StepRecord",
    "Summary",
    "Switch",
    "accelerate",
    "backends",
    "disable",
    "enable",
    "load_lora",
    "ops",
    "read_lora",
    "recommended_weights",
    "summary",
]


def __getattr__(name: str) -> Any:
    # At first use: the front door brings diffusers, seconds that `cmlora --help` can spare.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import frontdoor

    value = globals()[name] = getattr(frontdoor, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
