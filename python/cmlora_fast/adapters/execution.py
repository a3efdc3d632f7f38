"""How a run executes: said once, read wherever it matters."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Execution"]


@dataclass(frozen=True)
class Execution:
    """What holds for every step of a run; made at its first UNet call.

    Args:
        weights: "fold", "delta" or "auto", as asked for.
        max_rows: Most rows that run together; None: all of a step.
        static: Weights, tables and features stay in their memory, and nothing waits for the device.
        recorded: Steps are recorded and replayed; what they depend on beside the weights. None:
            they are not.
        compiled: They go through torch.compile first.
        gradients: Gradients will be taken through rows of all subsets at once.
        whole: Why the UNet cannot be taken apart, so that features cannot be cached; None: it can.
        unrecorded: Why steps are not recorded; empty where they are.
    """

    weights: str = "auto"
    max_rows: int | None = None
    static: bool = False
    recorded: Hashable | None = None
    compiled: bool = False
    gradients: bool = False
    whole: str | None = None
    unrecorded: str = "nothing has run"
