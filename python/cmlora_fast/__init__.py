"""Fast, dependable composition of several LoRAs on diffusers UNet pipelines."""

from . import ops
from .accelerate import accelerate, disable, enable, summary
from .methods import CMLoRA, Composite, Merge, Switch
from .ops.backends import backends
from .summary import StepRecord, Summary

__version__ = "0.1.0"

__all__ = [
    "CMLoRA",
    "Composite",
    "Merge",
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
