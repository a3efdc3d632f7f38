"""What ran: a record per step, and what can be printed and saved of a call."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..methods import Row

__all__ = ["StepRecord", "Summary"]

# Recorded tensors stay out of the JSON.
TENSOR_FIELDS = ("maps", "masks", "features", "profiles")


@dataclass
class StepRecord:
    """One UNet call of the denoising loop. With several images the fields hold image 0.

    Args:
        index: Number of the call, from 0.
        timestep: The scheduler's timestep.
        milliseconds: From the UNet call to the scheduler's answer, on the host.
        dominant: The leading adapter; None where none leads.
        early: Whether the step belongs to the early stage; None where there are no stages.
        refreshed: Adapters whose deep part ran.
        forecast: Adapters whose prediction was forecast.
        weights: Adapter -> share of the combined prediction; they sum to 1.
        full_rows: Samples of the batch that ran the whole UNet.
        shallow_rows: Samples that ran the shallow part only.
        amplitude: High-frequency mean of the latents that this step returned.
        loss: CLoRA: every contrastive loss evaluated at this step, in order.
        mask_area: CLoRA: adapter -> share of the image that its mask claims.
        per_image: With several images, a dict of the deciding fields for each.
    """

    index: int
    timestep: float
    milliseconds: float = 0.0
    dominant: str | None = None
    early: bool | None = None
    refreshed: tuple[str, ...] = ()
    forecast: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    full_rows: int = 0
    shallow_rows: int = 0
    amplitude: float | None = None
    loss: tuple[float, ...] | None = None
    mask_area: dict[str, float] | None = None
    per_image: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Summary:
    """The last call of an enabled pipeline; empty before any call. Printing it gives a table.

    Args:
        method: Name of the method; None for the lossless mode.
        adapters: Adapters that took part, in order.
        backend: What the ops ran on.
        weights: {"mode", "reason", "bytes"} of the adapted layers' weights.
        cache: {"used", "reason"}: whether features were cached, or predictions forecast.
        graphs: {"used", "reason"}: whether steps were recorded, or compiled, and replayed; if so,
            how many were "recorded" and "replayed", the "seconds" that making them took and the
            "bytes" that they hold.
        peak_bytes: Largest memory seen at a step: of the device, or of the process on a CPU.
        seconds: From the call's start to its last step.
        steps: One record per UNet call.
        rows: CLoRA: the rows as they ran, with the token positions that were found.
        maps: Recorded by CLoRA: (T, J, r, q, 77) attention of image 0.
        masks: Recorded by CLoRA: (T, J, h, w) of image 0.
        features: Recorded: adapter -> (T, batch, C, h, w) features that entered the up block; NaN
            where a callback had shrunk the batch.
        profiles: Recorded: (T, bins) radial profile of image 0.
    """

    method: str | None = None
    adapters: tuple[str, ...] = ()
    backend: str = ""
    weights: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int = 0
    seconds: float = 0.0
    steps: list[StepRecord] = field(default_factory=list)
    rows: tuple[Row, ...] | None = None
    maps: Tensor | None = None
    masks: Tensor | None = None
    features: dict[str, Tensor] | None = None
    profiles: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the same names, without recorded tensors."""
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in (*TENSOR_FIELDS, "steps", "rows")
        }
        if self.rows is not None:
            plain["rows"] = [_plain(asdict(row)) for row in self.rows]
        plain["adapters"] = list(self.adapters)
        plain["steps"] = [_plain(asdict(step)) for step in self.steps]
        return plain

    def __str__(self) -> str:
        if not self.steps:
            return "cmlora_fast: nothing has run yet"
        out = io.StringIO()
        console = Console(file=out, width=110)
        console.print(self._table())
        weights, cache = self.weights, self.cache
        rows = sum(s.full_rows for s in self.steps), sum(s.shallow_rows for s in self.steps)
        line = (
            f"rows: {rows[0]} full, {rows[1]} shallow"
            f" · weights: {weights.get('mode')} ({weights.get('reason')})"
            f" · cache: {cache.get('reason')}"
            f" · graphs: {_graphs(self.graphs)}"
            f" · backend: {self.backend} · {self.seconds:.2f} s"
            f" · peak {self.peak_bytes / 2**20:.0f} MiB"
        )
        console.print(Text(line), soft_wrap=True)  # names of adapters are no markup
        return out.getvalue().rstrip()

    def _table(self) -> Table:
        title = f"{self.method or 'lossless'}: {', '.join(self.adapters) or 'no adapter'}"
        table = Table(title=Text(title, style="table.title"), title_justify="left")
        for name in ("step", "timestep", "ms", "dominant", "stage", "refreshed", "full", "shallow"):
            table.add_column(
                name, justify="right" if name in ("step", "timestep", "ms") else "left"
            )
        for s in self.steps:
            stage = {None: "", True: "early", False: "late"}[s.early]
            refreshed = "all" if not (s.shallow_rows or s.forecast) else ", ".join(s.refreshed)
            row = (s.index, f"{s.timestep:g}", f"{s.milliseconds:.1f}", s.dominant or "", stage)
            cells = (*row, refreshed, s.full_rows, s.shallow_rows)
            table.add_row(*[Text(str(cell)) for cell in cells])
        return table


def _graphs(report: dict[str, Any]) -> str:
    if not report.get("used"):
        return f"none ({report.get('reason')})"
    made, again = report["recorded"], report["replayed"]
    return f"{report['reason']}, {made} in {report['seconds']:.2f} s; {again} replayed"


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
