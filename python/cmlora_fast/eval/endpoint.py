"""Any OpenAI-compatible endpoint, by the standard library: ask once more when it is busy."""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

__all__ = ["Endpoint"]

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0
LARGEST = 4 * 2**20  # bytes of an answer; a verdict has some thousand
CHUNK = 2**16
SHOWN = 300  # characters of what went wrong; whole pages may be answered


@dataclass(frozen=True)
class Endpoint:
    """Who is asked. Redirects are refused: the key goes to this host and to no other.

    Args:
        url: Ends before ``/chat/completions``.
        model: Its name there.
        key: May be empty for local servers. In no error and no ``repr``, whatever is echoed.
        attempts: After so many the answer is given up.
        timeout: Seconds of an attempt, from its begin to the last byte.
        wait: Between attempts.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    attempts: int = 10
    timeout: float = 120.0
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise ValueError(f"judge {self.url}: the key: expected printable ASCII, no spaces")

    def check(self) -> None:
        """Raise ValueError if nobody answers, the key is refused or the answer is a redirect."""
        try:
            self._send("/models", None, min(10.0, self.timeout))
        except _Status as error:  # somebody is there; not every server lists its models
            if error.code in (401, 403):
                raise self._failed(f"refuses the key: {error}") from None
            if error.redirects:
                raise self._failed(str(error)) from None
        except (OSError, ValueError, HTTPException) as error:
            raise self._failed(f"cannot be reached: {error}") from None

    def ask(self, content: list[dict[str, Any]]) -> tuple[str, int, int]:
        """The answer to one user message, and the tokens of question and answer."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        for attempt in range(self.attempts):
            try:
                return _read(self._send("/chat/completions", body, self.timeout))
            except _Status as error:
                if error.code not in BUSY:
                    raise self._failed(str(error)) from None
                last: Exception = error
            except (OSError, HTTPException, ValueError) as error:
                last = error
            if attempt + 1 < self.attempts:
                self.wait(min(LONGEST_WAIT, 0.5 * 2**attempt))
        raise self._failed(f"no answer after {self.attempts} attempts: {last}") from None

    def redacted(self, text: str) -> str:
        """``text`` without the key, plain or as JSON, addresses and pages write it."""
        as_json = json.dumps(self.key)[1:-1]
        forms = {self.key, as_json, as_json.replace("/", r"\/"), repr(self.key)[1:-1]}
        forms |= {quote(self.key), quote(self.key, safe=""), html.escape(self.key)}
        for form in sorted(forms if self.key else (), key=len, reverse=True):
            text = text.replace(form, "***")
        return text

    def _send(self, path: str, body: Any, timeout: float) -> str:
        head = {"Content-Type": "application/json"}
        if self.key:
            head["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url.rstrip("/") + path, data, head)
        return _within(timeout, lambda ends: _exchange(request, timeout, ends))

    def _failed(self, what: str) -> ValueError:
        what = self.redacted(what)  # before the cut, which could leave half a key
        return ValueError(f"judge {self.url}: {what if len(what) <= SHOWN else what[:SHOWN] + '…'}")


class _Status(Exception):
    """An answer that is not 2xx."""

    def __init__(self, error: HTTPError, told: str):
        self.code, self.redirects = error.code, 300 <= error.code < 400
        if self.redirects:
            told = f"redirects to {error.headers.get('Location')}, where no key is sent"
        super().__init__(f"{error}: {told}")


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Urllib would send the key along."""


_opener = build_opener(_Stay)


def _within(seconds: float, work: Callable[[float], str]) -> str:
    """What ``work`` returns or raises. The timeout of a socket is one per read: bytes may drip."""
    found: futures.Future[str] = futures.Future()

    def run() -> None:
        try:
            found.set_result(work(time.monotonic() + seconds))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return found.result(seconds)
    except futures.TimeoutError:
        raise TimeoutError(f"not answered within {seconds:g} s") from None


def _exchange(request: Request, timeout: float, ends: float) -> str:
    try:
        with _opener.open(request, timeout=timeout) as answer:
            content = _content(answer, ends) if request.data else b""  # none asked: it is there
    except HTTPError as error:
        with error:
            raise _Status(error, _content(error, ends).decode(errors="replace")) from None
    if len(content) > LARGEST:
        raise ValueError(f"an answer of more than {LARGEST // 2**20} MiB")
    return content.decode(errors="replace")


def _content(answer: Any, ends: float) -> bytes:
    """The answer's bytes, one more than allowed at most, and none after ``ends``."""
    parts, room = [], LARGEST + 1
    while room and (part := answer.read1(min(room, CHUNK))):
        if time.monotonic() > ends:
            raise TimeoutError("timed out")
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def _read(raw: str) -> tuple[str, int, int]:
    """Text and token counts of a chat completion."""
    try:
        answer = json.loads(raw)
        text, usage = answer["choices"][0]["message"]["content"], answer.get("usage") or {}
        if isinstance(text, list):  # parts, e.g. {"type": "text", "text": "…"}
            text = "".join(part["text"] for part in text if part["type"] == "text")
        tokens = [usage.get(f"{side}_tokens", 0) for side in ("prompt", "completion")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"no chat completion: {raw}") from None
    if not isinstance(text, str | None):
        raise ValueError(f"a chat completion whose content is no text: {raw}")
    if any(type(count) is not int or count < 0 for count in tokens):
        raise ValueError(f"a chat completion whose token counts are no numbers: {raw}")
    return text or "", *tokens
