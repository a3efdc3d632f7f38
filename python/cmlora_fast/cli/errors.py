"""Errors of the command line: one clear line each."""

from __future__ import annotations

__all__ = ["CliError", "one_line"]

LONGEST = 600  # characters of a message; libraries put whole state dicts into theirs
PLAIN = (ValueError, TypeError, RuntimeError, OSError)  # their messages stand without the type


class CliError(Exception):
    """A mistake of the user's, told in one line."""


def one_line(error: BaseException) -> str:
    """The message of any exception as one line of bounded length."""
    text = " ".join(str(error).split())
    if not isinstance(error, (CliError, *PLAIN)) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ") + " (--debug shows the traceback)"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
