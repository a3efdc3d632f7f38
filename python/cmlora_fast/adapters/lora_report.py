"""What a LoRA is and what of it was loaded, in a form to print and to keep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .fit import plain

__all__ = ["LoraReport", "base_model", "trainer", "triggers"]

TAGS = 5  # trigger words at most that are taken from the captions' frequencies


@dataclass(frozen=True)
class LoraReport:
    """A LoRA as ``load_lora`` loaded it, or as ``read_lora`` found it.

    ``matched``: component.module of every adapted layer; ``unmatched``: keys that were not loaded.
    ``ranks``, ``alphas``: value -> number of layers. ``norms``: component -> Frobenius norm of the
    whole update at weight 1, without DoRA's magnitudes; None where only the header was read.
    """

    adapter_name: str | None
    kind: str
    format: str
    trained_with: str | None = None
    base_model: str | None = None
    matched: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    ranks: dict[int, int] = field(default_factory=dict)
    alphas: dict[float, int] = field(default_factory=dict)
    dtype: str = ""
    norms: dict[str, float] | None = None
    triggers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same names, ready for JSON: numbers as names of fields are texts."""
        found = asdict(self)
        for name in ("ranks", "alphas"):
            found[name] = {str(value): count for value, count in found[name].items()}
        return found | {name: list(found[name]) for name in ("matched", "unmatched", "triggers")}

    def __str__(self) -> str:
        parts = Counter(name.partition(".")[0] for name in self.matched)
        norms = (self.norms or {}).items()
        rows = {
            "adapter": self.adapter_name,
            "kind": f"{self.kind}, {self.format}, {self.dtype}",
            "trained with": self.trained_with,
            "base model": self.base_model,
            "layers": ", ".join(f"{part} {count}" for part, count in parts.items()),
            "not loaded": ", ".join(self.unmatched[:3]) + (" …" if len(self.unmatched) > 3 else ""),
            "ranks": _counted(self.ranks),
            "alphas": _counted(self.alphas),
            "norms": ", ".join(f"{part} {norm:.4g}" for part, norm in norms),
            "triggers": ", ".join(self.triggers),
        }
        return "\n".join(f"{name:13}{plain(text)}" for name, text in rows.items() if text)


def trainer(metadata: Mapping[str, str]) -> str | None:
    """The program that wrote the file, by what only it writes."""
    module = metadata.get("ss_network_module", "")
    if any(name.startswith("ot_") for name in metadata):
        return "OneTrainer"
    if module.startswith("lycoris"):
        return "LyCORIS"
    if any(name.startswith("ss_") for name in metadata):
        return "kohya's sd-scripts"
    if "lora_adapter_metadata" in metadata:
        return "diffusers"
    return metadata.get("modelspec.implementation") or None


def base_model(metadata: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """The model that the LoRA was made for, in the words of its trainer."""
    names = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
    told = next((metadata[name] for name in names if metadata.get(name)), None)
    return told or str(config.get("base_model_name_or_path") or "") or None


def triggers(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Trigger words: the author's own, else the most frequent tags of the training captions."""
    for name in ("modelspec.trigger_phrase", "modelspec.trigger_phrases", "trigger_words"):
        if words := metadata.get(name, "").strip():
            return tuple(word.strip() for word in words.split(",") if word.strip())
    try:
        folders = json.loads(metadata.get("ss_tag_frequency") or "{}")
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(tag for tag, _ in counts.most_common(TAGS))


def _counted(counts: Mapping[Any, int]) -> str:
    many: Sequence[tuple[Any, int]] = sorted(counts.items())
    return ", ".join(f"{value:g} ({count} layers)" for value, count in many)
