"""A run of the GPU benchmark as one JSON file and one table, its aims met or missed.

python -m cmlora_fast.benchmarks.gpu.report OUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from .parts import PARTS, rows_in

PEER = "plain, channels-last, compiled"


@dataclass(frozen=True)
class Aim:
    """``value`` over ``base``, each (variant, adapters, field), shall be at most ``most``; without
    base, ``value`` itself.
    """

    what: str
    value: tuple[str, int, str]
    base: tuple[str, int, str] | None
    most: float


def aims(fixed: float) -> tuple[Aim, ...]:
    """``fixed``: milliseconds of an image beside its steps, over the plain pipeline's own."""
    step, image, peer = "step_ms", "image_ms", (PEER, 0, "image_ms")
    folded = ("lossless", 1, step)
    return (
        Aim("lossless step / compiled plain step", folded, (PEER, 0, step), 0.9),
        Aim("lossless image / compiled plain image", ("lossless", 1, image), peer, 1.0),
        Aim("CMLoRA image, five / compiled plain image", ("CMLoRA offline", 5, image), peer, 1.6),
        Aim("Composite image, five / compiled plain image", ("Composite", 5, image), peer, 3.6),
        Aim("delta step / folded step, one adapter", ("delta", 1, step), folded, 1.2),
        Aim("delta step / folded step, five", ("delta", 5, step), ("lossless", 5, step), 1.4),
        Aim(f"fixed ms - plain's own, one adapter (at most {fixed:g})",
            ("lossless", 1, "over_plain_ms"), None, fixed),
        Aim(f"fixed ms - plain's own, five (at most {fixed:g})",
            ("lossless", 5, "over_plain_ms"), None, fixed),
    )  # fmt: skip


FIXED = {"SD": 8.0, "SDXL": 20.0}


def judged(rows: list[dict], model: str) -> list[str]:
    """One line per aim of a model: the ratio, and whether it is met."""
    found = {
        (r["variant"], r["adapters"]): r for r in rows if r["model"] == model and "step_ms" in r
    }
    plain = found.get((PEER, 0))
    for row in found.values():
        if plain is not None:
            row["over_plain_ms"] = row["fixed_ms"] - plain["fixed_ms"]
    lines = []
    for aim in aims(FIXED["SDXL" if model.startswith("SDXL") else "SD"]):
        value, base = (_value(found, asked) for asked in (aim.value, aim.base))
        if value is None or (aim.base is not None and base is None):
            lines.append(f"| {aim.what} | not measured | {aim.most:g} | |")
            continue
        ratio = value if base is None else value / base
        verdict = "met" if ratio <= aim.most else "missed"
        lines.append(f"| {aim.what} | {ratio:.2f} | {aim.most:g} | {verdict} |")
    return lines


def _value(found: dict, asked: tuple[str, int, str] | None) -> float | None:
    return None if asked is None else found.get(asked[:2], {}).get(asked[2])


HEAD = ("", "adapters", "ms per step", "fixed ms", "image ms", "first image ms")


def table(rows: list[dict], model: str) -> list[str]:
    """Rows of one model; fixed is what an image costs beside its steps."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return lines + [f"| {' | '.join(_cells(row))} |" for row in rows if row["model"] == model]


def _cells(row: dict) -> tuple[str, ...]:
    name = row["variant"], str(row["adapters"])
    if "step_ms" not in row:
        return (*name, row.get("error", "")[:80], "", "", "")
    low, high = row["spread_ms"][1]
    image = f"{row['image_ms']:.0f} [{low:.0f}, {high:.0f}]"
    return (*name, f"{row['step_ms']:.2f}", f"{row['fixed_ms']:.0f}", image,
            f"{row['first_calls'][0]:.0f}")  # fmt: skip


def write_report(out: Path) -> str:
    """``gpu.json`` with every row and ``gpu.md`` with the tables; returns the latter."""
    parts = {part: rows_in(out / f"{part}.jsonl") for part in PARTS}
    told = json.loads((out / "machine.json").read_text())
    rows = [r for part in ("peer-sd15", "sd15", "peer-sdxl", "sdxl") for r in parts[part]]
    lines = [", ".join(f"{key} {value}" for key, value in told["machine"].items()), ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += [f"## {model}", "", *table(rows, model), ""]
        lines += ["| aim | reached | at most | |", "|---|---|---|---|", *judged(rows, model), ""]
    (out / "gpu.json").write_text(json.dumps(told | {"parts": parts}, indent=1) + "\n")
    text = "\n".join(lines)
    (out / "gpu.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1])))
