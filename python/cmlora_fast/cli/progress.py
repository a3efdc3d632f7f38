"""Progress bars on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["each_step", "progress"]

Advance = Callable[..., None]


@contextlib.contextmanager
def progress(total: int, description: str) -> Iterator[Advance]:
    """A bar; call what it gives as ``advance(description=...)`` for every unit of work done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # The streams stay where they are: a redirected standard output is not the bar's business.
    bar = Progress(
        *columns,
        console=Console(file=sys.stderr),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(description, total=total)

        def advance(amount: int = 1, description: str | None = None) -> None:
            bar.update(task, advance=amount, description=description)

        yield advance


def each_step(advance: Advance) -> Callable[..., dict[str, Any]]:
    """A ``callback_on_step_end`` that advances the bar."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance()
        return tensors

    return callback
