"""Fast, dependable composition of several LoRAs on diffusers UNet pipelines."""

from . import ops
from .accelerate import accelerate, disable, enable, summary
from .clora_method import CLoRA, Concept, Row
from .methods import CMLoRA, Composite, Merge, Switch
from .ops.backends import backends
from .summary import StepRecord, Summary

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
