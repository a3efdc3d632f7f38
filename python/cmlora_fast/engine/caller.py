"""Which thread a pipeline is called from, and whether it is still inside that call."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

__all__ = ["Caller", "Callers"]


@dataclass(frozen=True)
class Caller:
    """Who began a call.

    Args:
        thread: Its number.
        code: Of the pipeline's ``__call__``; None where the call began outside one, in a loop of
            the user's.
        frame: Identity of that call's frame, which is not kept: it holds the latents.
    """

    thread: int
    code: CodeType | None
    frame: int

    @classmethod
    def here(cls, pipe: Any) -> Caller:
        """Who runs this."""
        code = getattr(inspect.unwrap(type(pipe).__call__), "__code__", None)
        frames = (frame for frame in _outwards(sys._getframe()) if frame.f_code is code)
        found = next(frames, None)
        return cls(threading.get_ident(), None if found is None else code, id(found))

    @property
    def is_here(self) -> bool:
        """Whether the code that asks runs in the same thread."""
        return self.thread == threading.get_ident()

    def is_inside(self) -> bool:
        """Whether the thread is in the pipeline's call by now: an exception may have ended it."""
        newest = sys._getframe() if self.is_here else sys._current_frames().get(self.thread)
        frames = _outwards(newest)
        return any(frame.f_code is self.code and id(frame) == self.frame for frame in frames)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Callers:
    """Whose call a pipeline is in, and whose calls others have put an end to."""

    def __init__(self) -> None:
        self._now: Caller | None = None
        self._displaced: set[int] = set()

    def claim(self, pipe: Any, busy: bool) -> None:
        """This thread begins a call; ``busy``: another is in progress, unless something ended it.

        Raises:
            RuntimeError: It is, in another thread.
        """
        before = self._now
        if busy and before is not None and not before.is_here:
            if before.is_inside():
                raise RuntimeError(
                    "pipe: it is being called from another thread; expected one call at a time "
                    "(give each thread a pipeline and a scheduler of its own, over one UNet)"
                )
            self._displaced.add(before.thread)
        self._now = Caller.here(pipe)
        self._displaced.discard(self._now.thread)

    def is_here(self) -> bool:
        """Whether the call in progress, if any, may be this thread's."""
        return self._now is None or self._now.is_here or self._now.code is None

    def are_inside(self) -> bool:
        """Whether this thread is in the pipeline's call that is in progress."""
        return self._now is not None and self._now.is_here and self._now.is_inside()

    def have_left(self) -> bool:
        """Whether the call in progress was this thread's and has ended: something was raised."""
        now = self._now
        return now is not None and now.is_here and now.code is not None and not now.is_inside()

    def is_elsewhere(self, anybody: bool) -> bool:
        """Whether a UNet call is of another thread than the call in progress, and of another's.

        ``anybody``: what does not come from the thread of that call may be anybody's; else a loop
        of the user's may call the UNet from threads.

        Raises:
            RuntimeError: It is of a call that another thread has ended by beginning one.
        """
        if self._displaced and threading.get_ident() in self._displaced:
            raise RuntimeError(
                "pipe: another thread has begun a call of it; expected one call at a time"
            )
        now = self._now
        return now is not None and not now.is_here and (anybody or now.is_inside())
