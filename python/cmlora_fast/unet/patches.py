"""Instance attributes set on foreign objects, and taken back exactly."""

from __future__ import annotations

from typing import Any

__all__ = ["Patches"]

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
