"""``load_lora`` and ``read_lora``: a LoRA of any layout into a pipeline, or told about."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .active import activate, keep, put_back
from .factors import factors_of, product_norm
from .fit import SHOWN, plain, some
from .kinds import kind_of_keys
from .layouts import Parsed, foreign_kind, format_of, parse, place
from .lora_report import LoraReport, base_model, trainer, triggers
from .source import Source, open_source
from .updates import Alphas, Names, Update, read_update

__all__ = ["load_lora", "read_lora"]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def load_lora(
    pipe: Any,
    source: str | Path,
    adapter_name: str | None = None,
    weight: float = 1.0,
    strict: bool = True,
) -> LoraReport:
    """Load a LoRA of any known layout and add it to the active adapters.

    Args:
        pipe: A diffusers pipeline with a ``UNet2DConditionModel``.
        source: A file, a folder that PEFT or diffusers saved, or a hub id.
        adapter_name: None: the file's name, made valid and unique.
        weight: Its adapter weight; the others keep theirs.
        strict: Keys that nothing is loaded from are an error; False: they are reported.

    Raises:
        ValueError: One line with the file's name: it cannot be read, is no LoRA, is for another
            architecture, holds NaN. The pipeline is then as it was.
    """
    if not isinstance(weight, Real) or isinstance(weight, bool) or not math.isfinite(weight):
        raise ValueError(f"weight: expected a finite number; got {weight!r}")
    opened = open_source(source)
    name = _adapter_name(pipe, opened.path, adapter_name)
    try:
        parsed = _parsed(opened)
        if parsed.embeddings:
            parsed.rest += [key for parts in parsed.embeddings.values() for key in parts.values()]
        tensors = opened.tensors()
        updates, missed, reasons = _updates(pipe, opened, parsed, tensors)
        _check(parsed, updates, missed, reasons, strict)
    except ValueError as error:
        raise ValueError(f"{opened.path}: {error}") from error
    report = _report(
        opened,
        parsed,
        name,
        tuple(f"{u.component}.{u.name}" for u in updates),
        (*parsed.rest, *missed),
        _norms((u.component, u.a, u.b, u.scale) for u in updates),
    )
    before = keep(pipe)
    try:
        pipe.load_lora_weights(_state_dict(updates), adapter_name=name)
        activate(pipe, before, name, weight, updates)
    except Exception as error:
        put_back(pipe, before, name)
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{opened.path}: diffusers cannot load it: {told[0]}") from error
    return report


def read_lora(source: str | Path, norms: bool = False) -> LoraReport:
    """The report of a LoRA without a pipeline: of its header and its alphas.

    Args:
        source: As ``load_lora`` takes it.
        norms: Read the whole file, and tell the norms of its updates.

    Raises:
        ValueError: One line with the file's name: it cannot be read, or is no LoRA.
    """
    opened = open_source(source)
    try:
        parsed = _parsed(opened)
        layers = tuple(".".join(place(stem)) for stem in parsed.updates)
        rest = (*parsed.rest, *(k for e in parsed.embeddings.values() for k in e.values()))
        told = _norms(_unplaced(opened, parsed)) if norms else None
        return _report(opened, parsed, None, layers, rest, told)
    except ValueError as error:
        raise ValueError(f"{opened.path}: {error}") from error


def _parsed(source: Source) -> Parsed:
    parsed = parse(source.shapes)
    if not parsed.updates:
        what = foreign_kind(source.shapes)
        told = f"is {what}" if what else "not a LoRA: none of its tensors is one"
        keys = some(list(source.shapes)) or "it is empty"
        raise ValueError(f"{told} ({keys}); expected keys such as lora_down.weight")
    return parsed


def _updates(
    pipe: Any, source: Source, parsed: Parsed, tensors: Mapping[str, Tensor]
) -> tuple[list[Update], list[str], list[str]]:
    """The updates that fit, the keys of those that do not, and a reason for each."""
    bad = [k for k, t in tensors.items() if not torch.isfinite(t.float()).all()]
    if bad:
        raise ValueError(
            f"NaN or infinity in {len(bad)} of its {len(tensors)} tensors: {some(bad)}"
        )
    models = {n: m for n in ("unet", *TEXT_ENCODERS) if (m := getattr(pipe, n, None)) is not None}
    names, alphas = Names(models), Alphas(source)
    updates, missed, reasons = [], [], []
    for stem, roles in parsed.updates.items():
        update, reason = read_update(stem, {r: tensors[k] for r, k in roles.items()}, names, alphas)
        if update is None:
            missed += roles.values()
            reasons.append(reason)
        else:
            updates.append(update)
    return updates, missed, reasons


def _check(
    parsed: Parsed, updates: list[Update], missed: list[str], reasons: list[str], strict: bool
) -> None:
    if not updates or (strict and reasons):
        what = foreign_kind([key for roles in parsed.updates.values() for key in roles.values()])
        made = f"is {what}" if what else "made for another architecture"
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise ValueError(
            f"{made}: {len(reasons)} of its {len(parsed.updates)} layers do not fit: "
            f"{'; '.join(map(plain, reasons[:SHOWN]))}{more}"
        )
    if strict and parsed.rest:
        raise ValueError(
            f"{len(parsed.rest)} of its keys are not loaded: {some(parsed.rest)}; "
            "strict=False loads the rest"
        )
    places = Counter((u.component, u.name) for u in updates)
    if twice := [".".join(place) for place, count in places.items() if count > 1]:
        raise ValueError(f"{len(twice)} layers are there twice: {some(twice)}")
    for part in dict.fromkeys(u.component for u in updates):
        dora = [u.magnitude is not None for u in updates if u.component == part]
        if any(dora) and not all(dora):
            raise ValueError(
                f"DoRA in {sum(dora)} of {len(dora)} layers of the {part}; expected all or none"
            )


def _state_dict(updates: list[Update]) -> dict[str, Tensor]:
    """The updates as diffusers and PEFT name them."""
    found = {}
    for update in updates:
        stem = f"{update.component}.{update.name}"
        found[f"{stem}.lora_A.weight"], found[f"{stem}.lora_B.weight"] = update.a, update.b
        if update.magnitude is not None:
            found[f"{stem}.lora_magnitude_vector"] = update.magnitude
    return found


def _unplaced(source: Source, parsed: Parsed) -> list[tuple[str, Tensor, Tensor, float]]:
    """The updates of a file whose model is not at hand."""
    tensors, alphas, found = source.tensors(), Alphas(source), []
    for stem, roles in parsed.updates.items():
        parts = {role: tensors[key] for role, key in roles.items()}
        component, name = place(stem)
        made = factors_of(parts)
        scale = alphas.scale(component, name, parts.get("alpha"), made.rank)
        found.append((component, made.a, made.b, scale))
    return found


def _norms(updates: Any) -> dict[str, float]:
    squares: dict[str, float] = {}
    for component, a, b, scale in updates:
        squares[component] = squares.get(component, 0.0) + (scale * product_norm(a, b)) ** 2
    return {component: square**0.5 for component, square in squares.items()}


def _report(
    source: Source,
    parsed: Parsed,
    name: str | None,
    matched: tuple[str, ...],
    unmatched: tuple[str, ...],
    norms: dict[str, float] | None,
) -> LoraReport:
    own, alphas = source.tensors(only_alphas=True), Alphas(source)
    ranks, found = Counter(), Counter()
    for stem, roles in parsed.updates.items():
        rank = _rank({role: source.shapes[key] for role, key in roles.items()})
        alpha = alphas.alpha(*place(stem), own.get(roles.get("alpha", "")))
        ranks[rank] += 1
        found[float(rank) if alpha is None else alpha] += 1
    wide = any(
        max(source.shapes[r["down"]][2:], default=1) > 1
        for r in parsed.updates.values()
        if "down" in r
    )
    return LoraReport(
        adapter_name=name,
        kind=kind_of_keys(source.shapes) or ("LoCon" if wide else "LoRA"),
        format=format_of(source.shapes),
        trained_with=trainer(source.metadata),
        base_model=base_model(source.metadata, source.config),
        matched=matched,
        unmatched=tuple(unmatched),
        ranks=dict(sorted(ranks.items())),
        alphas=dict(sorted(found.items())),
        dtype=", ".join(sorted(set(source.dtypes.values()))),
        norms=norms,
        triggers=triggers(source.metadata),
    )


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The file's own word for it; of a whole matrix, its smaller side."""
    for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if shapes.get(role):
            return shapes[role][0]
    return min((min(shape[:2]) for shape in shapes.values() if len(shape) > 1), default=0)


def _adapter_name(pipe: Any, path: Path, given: str | None) -> str:
    """Valid for PEFT, in whose module names a dot would part it, and not yet taken."""
    used = {n for names in pipe.get_list_adapters().values() for n in names}
    if given is not None:
        if not given or re.search(r"[^\w-]", given):
            raise ValueError(f"adapter_name: expected letters, digits, _ and -; got {given!r}")
        if given in used:
            raise ValueError(f"adapter_name: {given!r} is loaded already; expected another name")
        return given
    usual = path.stem in ("pytorch_lora_weights", "adapter_model")
    stem = re.sub(r"[^\w-]", "_", path.parent.name if usual else path.stem) or "lora"
    name, number = stem, 2
    while name in used:
        name, number = f"{stem}_{number}", number + 1
    return name
