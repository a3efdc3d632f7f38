"""``cmlora lora inspect``: what a LoRA file holds, and whether it fits a model."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmlora_fast.report import document, print_json, print_table, printable

from .errors import CliError
from .options import AsJson
from .quiet import quiet

if TYPE_CHECKING:
    from cmlora_fast.adapters.file import LoraFile

__all__ = ["inspect_lora"]

SHOWN = 12  # rows of misfits in the table; --json has them all
LONGEST = 160  # characters of a metadata value in the table


def inspect_lora(
    path: Annotated[str, typer.Argument(help="A .safetensors file, or an embedded LoRA's id.")],
    model: Annotated[
        str | None,
        typer.Option(help="Check against this diffusers directory, or embedded."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a LoRA's kind, naming, ranks, alphas and targets; with a model, what does not fit."""
    from cmlora_fast.adapters.file import non_finite, read_lora

    from .lora_files import resolve_path

    with quiet():
        file = read_lora(resolve_path(path))
        if file.kind == "unknown":
            raise CliError(f"{file.path}: not a LoRA: none of its {file.tensors} tensors is one")
        facts = _facts(file, non_finite(file.path))
        if model is not None:
            facts["fit"] = _fit(file, model)
    if as_json:
        print_json(document("lora inspect", {"path": path, "model": model}, **facts))
    else:
        _print(facts)
    if model is not None and facts["fit"]["misfits"]:
        count = len(facts["fit"]["misfits"])
        raise CliError(f"{file.path}: {count} of its {len(file.layers)} layers do not fit {model}")


def _facts(file: LoraFile, bad: list[str]) -> dict[str, Any]:
    ranks = Counter(layer.rank for layer in file.layers)
    alphas = Counter("none" if layer.alpha is None else layer.alpha for layer in file.layers)
    return {
        "file": str(file.path),
        "kind": file.kind,
        "naming": file.naming,
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alphas": {str(alpha): count for alpha, count in alphas.items()},
        "targets": file.targets,
        "layers": [
            {"component": x.component, "name": x.name, "rank": x.rank, "alpha": _number(x.alpha)}
            for x in file.layers
        ],
        "tensors": file.tensors,
        "bytes": file.bytes,
        "dtypes": list(file.dtypes),
        "metadata": file.metadata,
        "other_keys": list(file.other_keys),
        "non_finite": bad,
    }


def _number(alpha: float | None) -> float | None:
    """JSON has no NaN; ``non_finite`` names its key."""
    return alpha if alpha is not None and math.isfinite(alpha) else None


def _fit(file: LoraFile, model: str) -> dict[str, Any]:
    from cmlora_fast.adapters.fit import meta_models, misfits
    from cmlora_fast.eval import EMBEDDED
    from cmlora_fast.testbed import DATA

    try:
        models = meta_models(DATA / "pipeline" if model == EMBEDDED else model)
    except ValueError as error:
        raise CliError(f"--model {error}") from error
    wrong = misfits(file, models)
    return {"model": model, "misfits": [misfit.to_dict() for misfit in wrong]}


def _print(facts: dict[str, Any]) -> None:
    rows = [
        ["kind", facts["kind"]],
        ["naming", facts["naming"]],
        ["ranks", _counted(facts["ranks"])],
        ["alphas", _counted(facts["alphas"])],
        ["targets", ", ".join(f"{part}: {n} layers" for part, n in facts["targets"].items())],
        ["size", f"{facts['bytes'] / 2**20:.2f} MiB in {facts['tensors']} tensors"],
        ["dtype", ", ".join(facts["dtypes"])],
        ["NaN or infinity", ", ".join(facts["non_finite"][:SHOWN]) or "none"],
        *([["other keys", ", ".join(facts["other_keys"][:SHOWN])]] if facts["other_keys"] else []),
        *[[f"metadata {key}", _short(value)] for key, value in facts["metadata"].items()],
    ]
    print_table(facts["file"], ["", ""], rows)
    fit = facts.get("fit")
    if fit and fit["misfits"]:
        shown = [
            [m["key"], list(m["shape"]), list(m["expected"]) if m["expected"] else "no such layer"]
            for m in fit["misfits"][:SHOWN]
        ]
        print_table(f"does not fit {fit['model']}", ["key", "shape", "expected"], shown)
    elif fit:
        print(f"every layer fits {printable(fit['model'])}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} (in {count} layers)" for value, count in counts.items())
