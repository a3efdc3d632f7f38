"""Files of measurements: named by what, when and where, parts of one commit add up."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ..errors import CliError
from ..images import make_folder

__all__ = ["earlier_part", "place", "write"]

# as the parts have it
SETTLED = ("channels", "latents", "steps", "threads", "device", "dtype", "isa", "seconds", "quick")


def place(report: dict[str, Any], out: Path, name: str) -> Path:
    """``out/<name>-<date>-<processor>[-<dtype>].json``; makes the folder."""
    make_folder(out)
    where = report["machine"]
    device = where["gpus"][0] if report["arguments"].get("device") == "cuda" else where["processor"]
    kind = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    dtype = report["arguments"].get("dtype", "float32")
    return out / f"{name}-{report['date']}-{kind}{'' if dtype == 'float32' else f'-{dtype}'}.json"


def write(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(_rounded(report), indent=1, allow_nan=False) + "\n")


def earlier_part(report: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The document that ``path`` holds of the same measurement; None if there is none.

    Raises:
        CliError: It is no such document, or of another commit or of other settings.
    """
    if not path.exists():
        return None
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise CliError(f"--out: {path} is not JSON: {error}; remove it or choose another") from None
    given = _rounded(report["arguments"])
    pairs = {"commit": (before["commit"], report["commit"])}
    pairs |= {name: (before["arguments"].get(name), given.get(name)) for name in SETTLED}
    for name, (old, new) in pairs.items():
        if old != new:
            raise CliError(f"--out: {path.name} has {name} {old}, this run {new}; choose another")
    return before


def _rounded(value: Any) -> Any:
    """Four digits say all that a measurement knows."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
