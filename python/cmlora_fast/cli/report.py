"""What every answer carries: the machine, the versions and the arguments."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "document",
    "machine",
    "print_json",
    "print_table",
    "version_of",
    "versions",
    "write_json",
]

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


def print_json(data: dict[str, Any]) -> None:
    """The one document that ``--json`` leaves on standard output; strict JSON, no NaN."""
    print(json.dumps(data, indent=2, default=_plain, allow_nan=False))


def write_json(data: dict[str, Any], path: Path) -> None:
    """The same document as a file."""
    text = json.dumps(data, indent=2, default=_plain, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; cells are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[Text(str(cell)) for cell in row])
    # A file or a pipe has no width to fit.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


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
