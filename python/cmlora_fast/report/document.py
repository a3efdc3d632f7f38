"""What every result carries: machine, versions, arguments, date and commit."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["as_json", "document", "machine", "provenance", "version_of", "versions", "write_json"]

PACKAGES = (
    "cmlora-fast",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "triton",
)


def version_of(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Package -> installed version, Python's own first."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine."""
    import psutil
    import torch

    gpus = range(torch.cuda.device_count())
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def document(command: str, arguments: dict[str, Any], **results: Any) -> dict[str, Any]:
    """The JSON document of one verb."""
    head = {"command": command, "arguments": arguments}
    return {**head, "machine": machine(), "versions": versions(), **results}


def provenance() -> dict[str, Any]:
    """When, and from which commit where the package runs from a clone."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
        commit = asked.stdout.strip() or None
    except OSError:
        commit = None
    return {"date": datetime.date.today().isoformat(), "commit": commit}


def as_json(data: dict[str, Any]) -> str:
    """Strict JSON, no NaN; what is no plain data as its text."""
    return json.dumps(data, indent=2, default=_plain, allow_nan=False)


def write_json(data: dict[str, Any], path: Path) -> None:
    path.write_text(as_json(data) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    return str(value)
