"""Standard output has the answer, one JSON document or tables; standard error the progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .document import as_json

__all__ = ["each_step", "print_json", "print_table", "progress"]

Advance = Callable[..., None]


def print_json(data: dict[str, Any]) -> None:
    """The one document that ``--json`` leaves there."""
    print(as_json(data))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table; cells are text, never markup."""
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
