"""Composition methods: frozen, validated, plain data; bad values raise when one is made.

Nothing here imports torch, diffusers or numpy.
"""

from __future__ import annotations

from .cached import CMLoRA, Composite, Merge, Method, Switch
from .clora import CLoRA, Concept, Row
from .named import METHODS, resolve
from .recommended import recommended_weights

__all__ = [
    "METHODS",
    "CLoRA",
    "CMLoRA",
    "Composite",
    "Concept",
    "Merge",
    "Method",
    "Row",
    "Switch",
    "recommended_weights",
    "resolve",
]
