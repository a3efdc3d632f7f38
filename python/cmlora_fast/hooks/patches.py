"""Attributes set on foreign objects, and taken back exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor, nn

__all__ = ["Hook", "Patches", "frozen", "runs_own_forward", "sweep"]

_ABSENT = object()
# Where accelerate keeps the forward that it found.
MOVED = {"forward": "_old_forward"}


class Hook(functools.partial):
    """Stands for ``original`` in its owner, with its signature.

    Copies and pickles of the owner get the original: they are as if nobody had hooked it. One that
    is ``gone`` may be called, or put back, by whoever has kept it: it is the original, and goes.
    """

    original: Callable
    before: Any
    owner: Any
    name: str
    gone: bool

    @classmethod
    def over(cls, original: Callable, run: Callable) -> Hook:
        """``run`` in the place of ``original``."""
        hook = cls(run)
        functools.update_wrapper(hook, original)
        hook.original, hook.before, hook.owner, hook.gone = original, _ABSENT, None, False
        return hook

    def leave(self) -> None:
        """Out of the owner, wherever it stands there, and from here on the original."""
        if not self.gone:
            self.gone = True
            self.__setstate__((self._pass, (), {}, self.__dict__))
        for place in (self.name, MOVED.get(self.name, self.name)):
            _take_out(self.owner.__dict__, place, self)

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        self.leave()
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.original.__reduce_ex__(protocol)


class Patches:
    """Remembers what every patched attribute was in the instance's own dictionary."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Shadow ``owner.name`` by an instance attribute."""
        before = owner.__dict__.get(name, _ABSENT)
        if isinstance(value, Hook):
            value.before, value.owner, value.name = before, owner, name
        self._undo.append((owner, name, before, value))
        owner.__dict__[name] = value

    def restore(self) -> None:
        """Undo in reverse order; after an interruption, the rest.

        What somebody else put over ours since stays theirs: of hooks ours is taken out from below.
        """
        while self._undo:
            owner, name, before, ours = self._undo[-1]
            if isinstance(ours, Hook):
                ours.leave()
            elif owner.__dict__.get(name) is ours:
                _put(owner.__dict__, name, before)
            self._undo.pop()


def _take_out(own: dict[str, Any], name: str, ours: Hook) -> None:
    """Undo one hook, which may lie beneath others of ours, or where accelerate has put it."""
    top = own.get(name)
    if top is ours:
        # What accelerate keeps is called, so it has to stay something.
        moved = name in MOVED.values() and ours.before is _ABSENT
        _put(own, name, ours.original if moved else ours.before)
        return
    while isinstance(top, Hook):
        if top.before is ours:
            top.before, top.original = ours.before, ours.original
            return
        top = top.before


def _put(own: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        own.pop(name, None)
    else:
        own[name] = value


def sweep(model: nn.Module) -> None:
    """Take out hooks that are gone, and that somebody has put back."""
    for module in model.modules():
        hook = module.__dict__.get("forward")
        if isinstance(hook, Hook) and hook.gone:
            hook.leave()


def runs_own_forward(module: nn.Module) -> bool:
    """Whether the module's class, hooks of ours aside, says what its forward is."""
    forward = module.__dict__.get("forward")
    while isinstance(forward, Hook):
        forward = None if forward.before is _ABSENT else forward.before
    if forward is None:
        return True
    # A copy of a hooked module has the method itself in the place of the hook.
    own = isinstance(forward, MethodType) and forward.__self__ is module
    return own and forward.__func__ is type(module).forward


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
