"""Standard output has the answer, one JSON document or tables; standard error the progress."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from .document import as_json

__all__ = ["each_step", "print_json", "print_table", "printable", "progress"]

Advance = Callable[..., None]


def print_json(data: dict[str, Any]) -> None:
    """The one document that ``--json`` leaves there."""
    print(as_json(data))


def printable(text: str) -> str:
    """Text of a file or a path in one line that commands no terminal: escapes are written out."""
    return "".join(map(_shown, text))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table; title, columns and cells are text, never markup or commands of the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title), style="table.title"), title_justify="left")
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*[Text(printable(str(cell))) for cell in row])
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
        task = bar.add_task(printable(description), total=total)

        def advance(amount: int = 1, description: str | None = None) -> None:
            shown = None if description is None else printable(description)
            bar.update(task, advance=amount, description=shown)

        yield advance


def each_step(advance: Advance) -> Callable[..., dict[str, Any]]:
    """A ``callback_on_step_end`` that advances the bar."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance()
        return tensors

    return callback


def _shown(letter: str) -> str:
    if letter.isprintable() or unicodedata.category(letter) == "Zs":  # spaces of all scripts
        return letter
    return letter.encode("unicode_escape").decode()
