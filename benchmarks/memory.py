"""How much memory a call takes beyond what was in use before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["peak_growth"]


def peak_growth(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory grows while ``call`` runs: torch's on a GPU, the process's on Linux.

    None where it cannot be told.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        call()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is in use
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])
