"""A labelled contact sheet, drawn with Pillow alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Tile", "contact_sheet"]

CELL = 256  # pixels: small images grow by the largest whole factor that fits
GAP = 14
LABEL, NOTE, TITLE = 18, 15, 20  # font sizes
SMALLEST = 9
LINE = 1.35  # line height in font sizes
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 24), (96, 96, 104)


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet: its label above it, its note below it, broken to its width."""

    label: str
    image: Image.Image
    note: str = ""


def contact_sheet(
    tiles: Sequence[Tile], title: str, *, columns: int = 5, cell: int = CELL
) -> Image.Image:
    """Paint the tiles row by row under a title that is broken to the sheet's width."""
    if not tiles:
        raise ValueError("contact_sheet: expected at least one tile; got none")
    columns = min(columns, len(tiles))
    grown = [_grow(tile.image, cell) for tile in tiles]
    wide, high = max(i.width for i in grown), max(i.height for i in grown)
    width = columns * (wide + GAP) + GAP
    lines = _wrap(title, width - 2 * GAP, TITLE)
    top = GAP + _height(TITLE) * len(lines) + GAP // 2
    notes = [_wrap(tile.note, wide, NOTE) for tile in tiles]
    row_height = _height(LABEL) + high + _height(NOTE) * max(1, *map(len, notes)) + GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width, top + rows * row_height + GAP // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + number * _height(TITLE)), line, INK, font=_font(TITLE))
    for index, (tile, image) in enumerate(zip(tiles, grown, strict=True)):
        row, column = divmod(index, columns)
        x, y = GAP + column * (wide + GAP), top + row * row_height
        draw.text((x, y), tile.label, INK, font=_fit(tile.label, LABEL, wide))
        sheet.paste(image, (x, y + _height(LABEL)))
        below = y + _height(LABEL) + high + 3
        for number, line in enumerate(notes[index]):
            place = x, below + number * _height(NOTE)
            draw.text(place, line, FAINT, font=_fit(line, NOTE, wide))
    return sheet


def _grow(image: Image.Image, cell: int) -> Image.Image:
    factor = max(1, cell // max(image.size))
    size = image.width * factor, image.height * factor
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _fit(text: str, size: int, width: int):
    """The largest font up to ``size`` in which the text fits into the width."""
    while size > SMALLEST and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


def _height(size: int) -> int:
    return round(size * LINE)


def _wrap(text: str, width: int, size: int) -> list[str]:
    average = _font(size).getlength("abcdefghij klmnop") / 17
    return [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, max(12, int(width / average))) or [""]
    ]
