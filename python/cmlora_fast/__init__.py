"""Fast, dependable composition of several LoRAs on diffusers UNet pipelines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import ops
from .ops.backends import backends

if TYPE_CHECKING:
    from .clora_method import CLoRA, Concept, Row
    from .frontdoor import accelerate, disable, enable, summary
    from .methods import CMLoRA, Composite, Merge, Switch
    from .records import StepRecord, Summary

__version__ = "0.1.0"

__all__ = [
    "CLoRA",
    "CMLoRA",
    "Composite",
    "Concept",
    "Merge",
    "Row",
    "StepRecord",
    "Summary",
    "Switch",
    "accelerate",
    "backends",
    "disable",
    "enable",
    "ops",
    "summary",
]

# Imported at first use: with diffusers they take seconds, and `cmlora --help` needs none of them.
_LAZY = {
    "clora_method": ("CLoRA", "Concept", "Row"),
    "frontdoor": ("accelerate", "disable", "enable", "summary"),
    "methods": ("CMLoRA", "Composite", "Merge", "Switch"),
    "records": ("StepRecord", "Summary"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
