"""A table of images: rows of adapters, weights and seeds; columns of methods, no LoRA first."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .jobs import Adapter, Generation, Job
from .store import ImageStore

__all__ = ["NO_LORA", "Cell", "make_cells", "page"]

NO_LORA = "no LoRA"
THUMBNAIL = 192  # pixels of the longer side; smaller images grow by a whole factor


@dataclass(frozen=True)
class Cell:
    """One image of the grid, and where it stands; ``adapters`` is the label of their set."""

    adapters: str
    row: str
    column: str
    job: Job


def make_cells(
    sets: Mapping[str, Sequence[Adapter]],
    prompts: Mapping[str, str],
    methods: Mapping[str, Any],
    weights: Sequence[float],
    seeds: Sequence[int],
    generation: Generation,
) -> list[Cell]:
    """Row by row, so that a grid that was stopped has whole rows.

    Args:
        sets: Label -> adapters with weights of their own.
        prompts: Label of a set -> its prompt.
        methods: Label -> instance; None: lossless.
        weights: Each multiplies all weights of a set.
        seeds: A row each.
    """
    cells = []
    for label, adapters in sets.items():
        for weight in weights:
            scaled = tuple(Adapter(a.name, a.digest, a.weight * weight) for a in adapters)
            for seed in seeds:
                row = f"{label} · weight {weight:g} · seed {seed}"
                bare = Job(generation, prompts[label], (), None, seed)
                cells.append(Cell(label, row, NO_LORA, bare))
                cells += [
                    Cell(label, row, column, Job(generation, prompts[label], scaled, method, seed))
                    for column, method in methods.items()
                ]
    return cells


def page(
    title: str,
    facts: Mapping[str, Any],
    cells: Sequence[Cell],
    store: ImageStore,
    notes: Sequence[str],
) -> str:
    """An HTML page for the store's folder that needs no server.

    Thumbnails are inside, each a link to its image.

    Args:
        notes: What stands below the image of each cell.
    """
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows: dict[str, dict[str, str]] = {}
    for cell, note in zip(cells, notes, strict=True):
        rows.setdefault(cell.row, {})[cell.column] = _cell(cell, store, note)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{html.escape(row)}</th>"
        + "".join(row_cells[column] for column in columns)
        + "</tr>\n"
        for row, row_cells in rows.items()
    )
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(fact))}</dd>"
        for name, fact in facts.items()
    )
    return _PAGE.format(title=html.escape(title), facts=listed, head=head, body=body)


def _cell(cell: Cell, store: ImageStore, note: str) -> str:
    path = store.path(cell.job)
    where = html.escape(path.relative_to(store.folder).as_posix())
    label = html.escape(f"{cell.column}: {cell.row}")
    return (
        f'<td><a href="{where}" title="{label}"><img alt="{label}" src="{_thumbnail(path)}">'
        f"</a><p>{html.escape(cell.column)}<br>{html.escape(note)}</p></td>"
    )


def _thumbnail(path: Path) -> str:
    with Image.open(path) as file:
        image = file.convert("RGB")
    factor = THUMBNAIL // max(image.size)
    if factor > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }}
dt {{ opacity: .65; }} dd {{ margin: 0; }}
table {{ border-spacing: .6rem; }}
thead th {{ position: sticky; top: 0; background: Canvas; text-align: left; padding: .3rem 0; }}
tbody th {{ text-align: left; font-weight: normal; max-width: 10rem; vertical-align: top; }}
td {{ vertical-align: top; }} td p {{ margin: .2rem 0 0; font-size: 12px; opacity: .8; }}
img {{ display: block; border-radius: 4px; }}
</style></head><body>
<h1>{title}</h1>
<dl>{facts}</dl>
<table><thead><tr><th></th>{head}</tr></thead>
<tbody>
{body}</tbody></table>
</body></html>
"""
