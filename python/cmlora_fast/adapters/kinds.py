"""The kinds of adapters, as the keys of a file and PEFT's layers show them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["DORA", "KINDS", "PLAIN", "WITH_BIAS", "Kind", "kind_of_keys", "kind_of_layer"]

PLAIN = ("LoRA", "LoCon")  # what is computed: on linear layers alone, and on convolutions too
DORA, WITH_BIAS = "DoRA", "LoRA with bias"


@dataclass(frozen=True)
class Kind:
    """What is not plain LoRA: a mark in its keys, and its folder in ``peft.tuners``."""

    name: str
    mark: str | None = None
    tuner: str | None = None


# Most specific first: the first whose mark occurs names a file.
KINDS = (
    Kind("LoHa", r"\.hada_[wt]\d", "loha"),
    Kind("LoKr", r"\.lokr_[wt]\d", "lokr"),
    Kind(DORA, r"\.dora_scale$|lora_magnitude_vector"),
    Kind("OFT", r"\.oft_(blocks|diag|r|R)\b", "oft"),
    Kind("BOFT", tuner="boft"),
    Kind("IA3", r"\.ia3_l|\.on_input$", "ia3"),
    Kind("LoCon with CP decomposition", r"\.lora_mid\."),
    Kind(WITH_BIAS, r"\.lora_(B|up|down)\.bias$|\.bias_(indices|values|size)$"),
    Kind("full weight difference", r"\.diff(_b)?$"),
)
_MARKED = re.compile("|".join(kind.mark for kind in KINDS if kind.mark))


def kind_of_keys(keys: Iterable[str]) -> str | None:
    """The kind whose mark occurs in a file's keys; None: no mark of another kind than LoRA."""
    keys = list(filter(_MARKED.search, keys))
    for kind in KINDS:
        if kind.mark and any(re.search(kind.mark, key) for key in keys):
            return kind.name
    return None


def kind_of_layer(cls: type) -> str:
    """The kind of a PEFT layer of this class; PEFT's own word for those that no kind names."""
    family = cls.__module__.split(".")
    tuner = family[2] if family[:2] == ["peft", "tuners"] and len(family) > 2 else "?"
    return next((kind.name for kind in KINDS if kind.tuner == tuner), tuner)
