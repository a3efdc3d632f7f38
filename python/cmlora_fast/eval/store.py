"""Files of a run that outlive a kill: one JSON line per finished thing, images by content."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .jobs import Job

__all__ = ["ImageStore", "Ledger"]


class Ledger:
    """An append-only JSONL file of records with a unique ``key``.

    A record counts once its line is complete: what a kill left behind half written is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._records: dict[str, dict[str, Any]] = {}
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object with a key; got {line[:60]!r}"
                ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: dict[str, Any]) -> None:
        """Write a record through to the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._records[record["key"]] = record


class ImageStore:
    """A folder of images named by what determines them, with ``manifest.jsonl`` beside."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self.manifest = Ledger(folder / "manifest.jsonl")

    def path(self, job: Job) -> Path:
        return self.folder / "images" / f"{job.key}.png"

    def has(self, job: Job) -> bool:
        """Whether the image is there, as it was when it was finished."""
        if job.key not in self.manifest:
            return False
        path = self.path(job)
        return path.is_file() and _digest(path.read_bytes()) == self.manifest[job.key]["sha256"]

    def add(self, job: Job, image: Image.Image, told: dict[str, Any]) -> None:
        """Keep a finished image, then its line with what is ``told`` of its making."""
        content = _png(image, job)
        path = self.path(job)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        os.replace(part, path)
        if job.key not in self.manifest:  # else the image had been lost or damaged since
            record = {"key": job.key, "image": f"images/{path.name}", "sha256": _digest(content)}
            self.manifest.add({**record, **told, "job": job.to_dict()})

    def record(self, job: Job) -> dict[str, Any]:
        return self.manifest[job.key]


def _png(image: Image.Image, job: Job) -> bytes:
    info = PngInfo()
    info.add_text("parameters", json.dumps(job.to_dict()))
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()
