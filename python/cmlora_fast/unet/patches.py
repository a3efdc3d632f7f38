"""Attributes set on foreign objects, and taken back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["Patches", "frozen"]

_ABSENT = object()


class Patches:
    """Remembers what every patched attribute was in the instance's own dictionary."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Shadow ``owner.name`` by an instance attribute."""
        self._undo.append((owner, name, owner.__dict__.get(name, _ABSENT), value))
        owner.__dict__[name] = value

    def restore(self) -> None:
        """Undo in reverse order. What somebody else put over ours since stays theirs."""
        while self._undo:
            owner, name, before, ours = self._undo.pop()
            if owner.__dict__.get(name) is not ours:
                continue
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """None of these records a gradient: nobody asks for one, and it would cost memory."""
    wanted = [p for p in parameters if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
