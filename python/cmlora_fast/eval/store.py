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
from pydantic import BaseModel, ValidationError

from .jobs import Job

__all__ = ["ImageStore", "Kept", "Ledger", "Record"]


class Record(BaseModel, strict=True):
    """The fields that a line of a ledger must have; it may have others."""

    key: str


class Kept(Record):
    """Of an image."""

    image: str
    sha256: str


class Ledger:
    """An append-only JSONL file of records; the last of a ``key`` counts.

    A record counts once its line is complete: what a kill left behind half written is dropped.

    Args:
        path: Of the file, which need not be there yet.
        form: Of its records.

    Raises:
        ValueError: A whole line is no record of this form; names the line.
    """

    def __init__(self, path: Path, form: type[Record] = Record):
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
                form.model_validate(record)
            except ValidationError as error:
                raise _malformed(f"{path}, line {number}", line, error.errors()[0]) from None
            except (ValueError, RecursionError):
                raise _malformed(f"{path}, line {number}", line) from None
            self._records[record["key"]] = record

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
    """A folder of images named by what determines them, with ``manifest.jsonl`` beside.

    Args:
        folder: Is made if it is not there.
        form: Of the records of its images.
    """

    def __init__(self, folder: Path, form: type[Kept] = Kept):
        self.folder = folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self.manifest = Ledger(folder / "manifest.jsonl", form)

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
        record = {"key": job.key, "image": f"images/{path.name}", "sha256": _digest(content)}
        # Else the image had been lost, and is as it was.
        if job.key not in self.manifest or self.record(job)["sha256"] != record["sha256"]:
            self.manifest.add({**record, **told, "job": job.to_dict()})

    def record(self, job: Job) -> dict[str, Any]:
        return self.manifest[job.key]


def _malformed(place: str, line: bytes, error: dict[str, Any] | None = None) -> ValueError:
    field, why = (error["loc"], f" ({error['msg']})") if error else ((), "")
    wanted = "a key" if field in ((), ("key",)) else ".".join(map(str, field))
    return ValueError(f"{place}: expected a JSON object with {wanted}; got {line[:60]!r}{why}")


def _png(image: Image.Image, job: Job) -> bytes:
    info = PngInfo()
    info.add_text("parameters", json.dumps(job.to_dict()))
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()
