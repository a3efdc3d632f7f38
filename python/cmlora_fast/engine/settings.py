"""What ``enable`` was asked for; checked when made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import CLoRA, Merge, Method, resolve
from ..methods.fields import is_int, is_list
from ..ops.backends import NAMES, check_backend
from ..schedule import Fade, fade_of

__all__ = ["BASE", "Settings"]

BASE = "__base__"  # PEFT's name for a row without adapters
CHOICES = {"weights": ("auto", "fold", "delta"), "graphs": ("auto", "compile", "off")}


@dataclass(frozen=True)
class Settings:
    """The arguments of ``enable``; ``method`` None is the lossless mode.

    ``adapter_names`` is kept as one tuple of names per image, None for all active ones,
    ``weight_schedule`` as a ``Fade`` per name.

    Raises:
        ValueError: An argument is none of what is allowed.
        RuntimeError: The backend is not available here; the reason is that of ``backends()``.
    """

    method: Method | CLoRA | str | None = None
    backend: str = "auto"
    weights: str = "auto"
    max_rows: int | None = None
    record: bool = False
    graphs: str = "auto"
    adapter_names: Sequence[Any] | None = None
    weight_schedule: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", resolve(self.method))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}; got {getattr(self, name)!r}")
        if self.max_rows is not None and not is_int(self.max_rows, 1):
            raise ValueError(f"max_rows: expected None or an int >= 1; got {self.max_rows!r}")
        if not isinstance(self.record, bool):
            raise ValueError(f"record: expected True or False; got {self.record!r}")
        if self.backend != "auto":
            check_backend(self.backend, ("auto", *NAMES))
        if self.adapter_names is not None:
            object.__setattr__(self, "adapter_names", self._entries())
        if self.weight_schedule is not None:
            object.__setattr__(self, "weight_schedule", self._fades())

    @property
    def planned(self) -> Method | CLoRA:
        return Merge() if self.method is None else self.method

    @property
    def forced(self) -> str | None:
        """The backend that the ops shall run on, None for the best of each."""
        return None if self.backend == "auto" else self.backend

    def _fades(self) -> dict[str, Fade]:
        given = self.weight_schedule
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ValueError(
                f"weight_schedule: expected a dict of adapter names and strengths; got {given!r}"
            )
        return {name: fade_of(name, value) for name, value in given.items()}

    def _entries(self) -> tuple[tuple[str, ...], ...]:
        form = f"a list of names, a name or {BASE!r}"
        entries, made = self.adapter_names, []
        if not is_list(entries) or not entries:
            raise ValueError(f"adapter_names: expected per image {form}; got {entries!r}")
        for i, entry in enumerate(entries):
            names = () if entry == BASE else (entry,) if isinstance(entry, str) else entry
            if not (is_list(names) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"adapter_names[{i}]: expected {form}; got {entry!r}")
            if len(set(names)) < len(names):
                raise ValueError(f"adapter_names[{i}]: expected every name once; got {entry!r}")
            made.append(tuple(names))
        return tuple(made)
