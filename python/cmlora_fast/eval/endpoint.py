"""Any OpenAI-compatible endpoint, by the standard library: ask once more when it is busy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

__all__ = ["Endpoint"]

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Endpoint:
    """``url`` ends before ``/chat/completions``; ``key`` may be empty for local servers."""

    url: str
    model: str
    key: str = ""
    attempts: int = 10
    timeout: float = 120.0
    wait: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Raise ValueError if nobody answers or the key is refused."""
        try:
            with self._open("/models", None, 10.0):
                pass
        except HTTPError as error:  # somebody is there; not every server lists its models
            if error.code in (401, 403):
                raise ValueError(f"judge {self.url}: refuses the key: {error}") from error
        except (URLError, OSError, ValueError, HTTPException) as error:
            raise ValueError(f"judge {self.url}: cannot be reached: {error}") from error

    def ask(self, content: list[dict[str, Any]]) -> tuple[str, int, int]:
        """The answer to one user message, and the tokens of question and answer."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        for attempt in range(self.attempts):
            try:
                with self._open("/chat/completions", body, self.timeout) as answer:
                    return _read(json.load(answer))
            except HTTPError as error:
                if error.code not in BUSY:
                    told = error.read().decode(errors="replace")[:200]
                    raise ValueError(f"judge {self.url}: {error}: {told}") from error
                last: Exception = error
            except (OSError, HTTPException, ValueError) as error:
                last = error
            if attempt + 1 < self.attempts:
                self.wait(min(LONGEST_WAIT, 0.5 * 2**attempt))
        raise ValueError(f"judge {self.url}: no answer after {self.attempts} attempts: {last}")

    def _open(self, path: str, body: Any, timeout: float) -> Any:
        head = {"Content-Type": "application/json"}
        if self.key:
            head["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        return urlopen(Request(self.url.rstrip("/") + path, data, head), timeout=timeout)


def _read(answer: dict[str, Any]) -> tuple[str, int, int]:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"an answer without choices: {str(answer)[:200]}") from error
    usage = answer.get("usage") or {}
    return text or "", usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
